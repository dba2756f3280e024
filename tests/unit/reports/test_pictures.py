"""Pictures of single images: scale, size and downsampling."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import ImageColor

from ae_pipeline.reports import gallery, pictures
from ae_pipeline.reports.heat_pictures import file_stem
from ae_pipeline.reports.pictures import Drawing, Panel, Scale
from ae_pipeline.storage.files import write_text


class TestScale:
    @pytest.mark.parametrize(
        ("residual", "end"), [(0.0, 10), (10.0, 10), (10.1, 30), (31, 100), (899.6, 1000), (2.9e5, 3e5)]
    )
    def test_the_scale_ends_at_a_round_number_above_all_residuals(self, residual: float, end: float) -> None:
        assert Scale.up_to(residual, 1.0).end == pytest.approx(end)

    def test_ticks_are_at_their_logarithms(self) -> None:
        assert Scale(100.0, 1.0).ticks == [
            ("1", 0),
            ("3", pytest.approx(np.log10(3) / 2)),
            ("10", pytest.approx(0.5)),
            ("30", pytest.approx(np.log10(30) / 2)),
            ("100", pytest.approx(1)),
        ]
        last_label, last_position = Scale(3000.0, 1.0).ticks[-1]
        assert last_label == "3,000"
        assert last_position == pytest.approx(1)

    def test_the_legend_runs_from_the_first_color_to_the_last(self) -> None:
        colours = Scale(10.0, 1.0).colours
        assert (colours[0], colours[-1]) == ("#000003", "#fcfea4")

    def test_the_palette_is_the_colormap_inferno(self) -> None:
        positions = np.geomspace(1, 10, 256)
        picture = Scale(10.0, 1.0).heat(positions[None, :]).convert("RGB")
        expected = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]
        np.testing.assert_array_equal(np.asarray(picture)[0], expected)

    @pytest.mark.parametrize(
        ("channels", "mode", "expected"),
        [(1, "L", [51]), (2, "L", [77]), (3, "RGB", [51, 102, 153]), (4, "RGB", [51, 102, 153])],
    )
    def test_images_with_any_number_of_channels_are_shown(self, channels: int, mode: str, expected: list[int]) -> None:
        image = np.broadcast_to(np.array([0.2, 0.4, 0.6, 0.8])[:channels], (4, 5, channels))
        picture = Scale(10.0, 1.0).shades(image)
        assert (picture.mode, picture.size) == (mode, (5, 4))
        assert np.asarray(picture).reshape(4, 5, -1)[2, 3].tolist() == expected

    def test_the_brightest_value_is_white(self) -> None:
        image = np.array([[[0.1], [0.05]]])
        assert np.asarray(Scale.up_to(1.0, 0.1).shades(image)).tolist() == [[255, 128]]

    def test_black_images_are_black(self) -> None:
        assert np.asarray(Scale.up_to(1.0, 0.0).shades(np.zeros((2, 2, 1)))).tolist() == [[0, 0], [0, 0]]


class TestLargeImages:
    def test_large_images_are_downsampled_and_keep_a_small_spot(self) -> None:
        image = np.random.default_rng(0).random((300, 200, 3))
        residual = np.ones((300, 200))
        residual[151, 77] = 50.0
        drawing = gallery._drawing(image, image, residual, (149, 75), (5, 5))
        assert (drawing.image.shape, drawing.residual.shape) == ((100, 67, 3), (100, 67))
        np.testing.assert_allclose(drawing.image[10, 20], image[30:33, 60:63].mean((0, 1)))
        assert drawing.residual[50, 25] == drawing.residual.max() == drawing.highest == 50
        assert drawing.spot == (75 / 200, 149 / 300, 5 / 200, 5 / 300)

    def test_wide_images_fit_the_box(self) -> None:
        empty = np.zeros((10, 40, 1))
        drawing = Drawing(
            image=empty,
            reconstruction=empty,
            residual=np.ones((10, 40)),
            spot=(0, 0, 0.1, 0.5),
            highest=1.0,
        )
        panel = Panel(
            row_id="a", score=1.0, is_anomaly=False, is_known_anomaly=None, drawing=drawing, scale=Scale(10.0, 1.0)
        )
        assert panel.size(160, 160) == (160, 40)

    @pytest.mark.parametrize("shape", [(960, 960), (1024, 1536), (1600, 16), (16, 1600), (64, 4096), (5, 5), (1, 1)])
    @pytest.mark.parametrize("corner", [0, -1])
    def test_a_spot_of_any_image_is_framed_inside_its_picture(self, shape: tuple[int, int], corner: int) -> None:
        image, residual = np.zeros((*shape, 1)), np.ones(shape)
        window = min(5, shape[0]), min(5, shape[1])
        residual[corner, corner] = 50.0
        hottest = [0, 0] if corner == 0 else [size - side for size, side in zip(shape, window, strict=True)]
        drawing = gallery._drawing(image, image, residual, hottest, window)
        panel = Panel(
            row_id="a", score=1.0, is_anomaly=True, is_known_anomaly=None, drawing=drawing, scale=Scale(50.0, 1.0)
        )
        strip = panel.strip(96)
        width, height = panel.size(3 * 96, 96)
        assert strip.size[1] == height
        first = np.asarray(strip)[:, :width]
        assert (first == ImageColor.getrgb(pictures._FRAME)).all(-1).any()


def test_the_heat_map_of_an_image_with_any_name_can_be_written(tmp_path: Path) -> None:
    names = ["a/b.png", "a_b.png", "x" * 255, "é" * 127 + ".png", "日" * 85, "x" * 254 + "y", "..", "a\\x0ab#?%.png"]
    for name in names:
        write_text(tmp_path / f"{file_stem(name)}.png", name)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == sorted(names)
