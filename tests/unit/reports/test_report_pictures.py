"""Reports of images: shown rows, pictures, and the text of the page."""

import base64
import html
import html.parser
import io
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from matplotlib.colors import LogNorm
from PIL import Image
from sklearn.metrics import roc_auc_score

from ae_pipeline.common.escape import escape_markdown
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.network import Pictures
from ae_pipeline.features.split import LABEL, cut_window
from ae_pipeline.latents.read import published_days
from ae_pipeline.orchestration.assets import anomaly_report
from ae_pipeline.reports import gallery
from ae_pipeline.reports.build import Report
from ae_pipeline.reports.context import day_variables, page_context
from ae_pipeline.reports.latent_map import reference_rows
from ae_pipeline.reports.page import render_day
from ae_pipeline.reports.ranking import as_rows, features_of, ranked_day, report_days, reported_days
from ae_pipeline.reports.view import Published
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from tests.support.images import waves
from tests.support.reports import Text, as_dataset, published, reported, speaks_of_rows
from tests.support.sensors import Fitted

pytestmark = pytest.mark.slow

SHAPE = ImageShape(height=12, width=16, channels=3, dtype="uint8")
NORMAL, STRANGE, UNKNOWN = 300, 30, 20
PREFIX = "data:image/png;base64,"


def album_rows() -> pl.DataFrame:
    """Features of 350 images. Each of the last 50 has a colored spot, and the label of the last 20 is unknown."""
    grey = waves(NORMAL + STRANGE + UNKNOWN, 0, SHAPE.model_copy(update={"channels": 1}))
    images = np.concatenate([grey, grey // 2 + 60, 255 - grey], axis=3)
    for index in range(NORMAL, len(images)):
        top, left = index % 9, index % 13
        images[index, top : top + 3, left : left + 3] = (255, 0, 255) if index % 2 else (0, 255, 0)
    known = [False] * NORMAL + [True] * STRANGE + [None] * UNKNOWN
    return pl.DataFrame(
        {
            "row_id": [f"shelf/<{index}>.png" for index in range(len(images))],
            "event_time": pl.Series([None] * len(images), dtype=pl.Datetime("us", "UTC")),
            "image": pl.Series([image.tobytes() for image in images], dtype=pl.Binary),
            LABEL: pl.Series(known, dtype=pl.Boolean),
        }
    )


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A published dataset of images without event time. Tests must not write to it."""
    config = PipelineConfig.model_validate(
        {
            "dataset": "album",
            "identity": ("file",),
            "images": {},
            "label": "spotted",
            "model": {"latent_dim": 8, "hidden": (32,)},
            "training": {"epochs": 30, "batch_size": 32, "learning_rate": 0.01, "only_normal": True, "device": "cpu"},
            "alerts": {"budget": 0.05, "report_rows": 60},
        }
    )
    paths = DatasetPaths(tmp_path_factory.mktemp("album"), "album")
    write_parquet(paths.features(ALL_ROWS), album_rows().to_arrow())
    window = cut_window({ALL_ROWS: read_facts(paths.features(ALL_ROWS))["content_hash"]}, config)
    columns = (FeatureColumn("image", ColumnType.IMAGE, SHAPE),)
    bundle, result = fit_bundle(Dataset(config, paths), columns, window)
    fitted = Fitted(
        config=config,
        paths=paths,
        columns=columns,
        days=(ALL_ROWS,),
        window=window,
        bundle=bundle,
        result=result,
    )
    published(fitted, [ALL_ROWS])
    return fitted


@pytest.fixture(scope="module")
def report(album: Fitted) -> Report:
    return reported(album, [ALL_ROWS])


@pytest.fixture
def writable_album(album: Fitted, tmp_path: Path) -> Fitted:
    """The same dataset under a root that the test may write to."""
    copy = replace(album, paths=DatasetPaths(tmp_path, "album"))
    write_parquet(copy.paths.features(ALL_ROWS), album_rows().to_arrow())
    published(copy, [ALL_ROWS])
    return copy


def test_a_page_shows_thumbnails_of_its_rows(writable_album: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    album = writable_album
    dataset, files = as_dataset(album), published_days(album.paths)
    with monkeypatch.context() as patch:
        patch.setattr(gallery, "_THUMBNAIL_SIDE", 8)
        (small,) = gallery.thumbnails(["shelf/<3>.png"], ALL_ROWS, album.paths, album.bundle).values()
    assert decoded(small).shape == (6, 8, 3)  # blocks of two pixels
    report_days([ALL_ROWS], files, dataset, album.bundle)
    published_album = Published(
        files=files,
        dataset=dataset,
        bundle=album.bundle,
        model_version=3,
        entries=reported_days(files, album.paths),
    )
    rows = tuple(as_rows(ranked_day(ALL_ROWS, album.paths).head(30)))
    context = page_context(published_album, ALL_ROWS, rows, published_album.page_of(ALL_ROWS))
    page = render_day(day_variables(published_album, ALL_ROWS, context), dataset)
    shown = dict(re.findall(r'data-value="([^"]+)"><img class="thumbnail" src="([^"]+)"', page))
    assert list(shown) == [html.escape(row.row_id) for row in rows[:20]]
    images = dict(album_rows().select("row_id", "image").iter_rows())
    for row in rows[:20]:
        image = np.frombuffer(images[row.row_id], dtype=np.uint8).reshape(12, 16, 3)
        assert np.array_equal(decoded(shown[html.escape(row.row_id)]), image)  # the brightest value is 255
    assert "/row?id=" not in page  # a page of all columns, which images do not have


def test_a_table_has_no_thumbnails(fitted: Fitted) -> None:
    row_ids = fitted.features(fitted.days[0])["row_id"].to_list()
    assert gallery.thumbnails(row_ids, fitted.days[0], fitted.paths, fitted.bundle) == {}


def test_reference_rows_without_a_day_are_calibration_rows(album: Fitted) -> None:
    normal = reference_rows(published_days(album.paths), album.paths, album.bundle)["row_id"].to_list()
    calibrated = album.bundle.window.rows("calibration", album.paths, ["row_id"])["row_id"].to_list()
    assert set(normal) < set(calibrated)
    assert len(normal) > len(calibrated) / 2


@dataclass
class Figure:
    """Pictures and text that a page shows of a row."""

    kind: str
    text: str = ""
    images: list[dict[str, str]] = field(default_factory=list)
    frames: list[dict[str, float]] = field(default_factory=list)

    @property
    def row_id(self) -> str:
        return self.text.split(" score ")[0].split(". ")[-1].strip()

    def picture(self, index: int) -> Image.Image:
        address = self.images[index]["src"]
        assert address.startswith(PREFIX)
        return Image.open(io.BytesIO(base64.b64decode(address.removeprefix(PREFIX))))


class Figures(html.parser.HTMLParser):
    """Rows that a page shows in pictures."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.figures: list[Figure] = []
        self._inside = False
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "figure":
            self._inside = "row" in given.get("class", "").split()
            self.figures += [Figure(given["class"].split()[-1])] if self._inside else []
        elif tag == "img" and given.get("class") != "thumbnail":  # of the table of rows
            self.figures[-1].images.append(given)
        elif tag == "i":
            ends = re.findall(r"(left|top|width|height):([\d.]+)%", given["style"])
            self.figures[-1].frames.append({name: float(share) / 100 for name, share in ends})

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "figure"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.figures[-1].text += data


@pytest.fixture(scope="module")
def figures(report: Report) -> list[Figure]:
    return Figures(report.page).figures


def of_kind(figures: list[Figure], kind: str) -> list[Figure]:
    return [figure for figure in figures if figure.kind == kind]


def rows_of(figures: list[Figure]) -> pl.DataFrame:
    wanted = pl.DataFrame({"row_id": [figure.row_id for figure in figures]})
    return wanted.join(album_rows(), on="row_id", maintain_order="left")


def table(dataset: Fitted) -> pl.DataFrame:
    return pl.read_delta(dataset.paths.latents).sort(["score", "row_id"], descending=[True, False])


def pictures_of(album: Fitted, figures: list[Figure]) -> Pictures:
    pictures = album.bundle.pictures(rows_of(figures))
    assert pictures is not None
    return pictures


def gallery_of(report: Report) -> gallery.Gallery:
    assert report.gallery is not None
    return report.gallery


def decoded(address: str) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.removeprefix(PREFIX)))))


def first_match(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match is not None
    return match


class TestWhichRows:
    def test_the_fifty_highest_scores_are_shown_in_order(self, album: Fitted, figures: list[Figure]) -> None:
        shown = of_kind(figures, "strangest")
        assert [figure.row_id for figure in shown] == table(album)["row_id"].head(50).to_list()
        scores = [float(first_match(r"score ([\d.]+)", figure.text)[1]) for figure in shown]
        assert scores == [pytest.approx(score, abs=0.051) for score in table(album)["score"].head(50)]

    def test_the_page_states_the_number_of_shown_rows(self, report: Report) -> None:
        assert "The 50 most anomalous of 350 images." in Text(report.page.read_text()).text

    def test_normal_rows_have_scores_near_the_calibration_median(self, album: Fitted, figures: list[Figure]) -> None:
        median = np.median(album.bundle.calibration.scores)
        rows = table(album).join(album_rows().select("row_id", LABEL), on="row_id").filter(~pl.col("is_anomaly"))
        rows = rows.filter(pl.col(LABEL).is_null() | ~pl.col(LABEL))
        nearest = sorted(rows.select("score", "row_id").rows(), key=lambda row: (abs(row[0] - median), row[1]))[:6]
        assert [figure.row_id for figure in of_kind(figures, "normal")] == [row_id for _, row_id in nearest]

    def test_a_row_shows_its_flag_and_its_label(self, album: Fitted, figures: list[Figure]) -> None:
        known = dict(album_rows().select("row_id", LABEL).rows())
        message = {True: "known anomaly", False: "known to be normal", None: ""}
        flags = dict(table(album).select("row_id", "is_anomaly").rows())
        for figure in of_kind(figures, "strangest"):
            assert re.findall("known [a-z ]*[a-z]", figure.text) == [message[known[figure.row_id]]] * (
                known[figure.row_id] is not None
            )
            assert ("⚑" in figure.text) == flags[figure.row_id]
        assert {known[figure.row_id] for figure in of_kind(figures, "strangest")} == {True, False, None}

    def test_fewer_rows_are_shown_if_the_page_would_be_too_large(
        self, writable_album: Fitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gallery, "_PAGE_BYTES", 40_000)
        report = reported(writable_album, [ALL_ROWS])
        few = Figures(report.page).figures
        assert 30_000 < sum(len(image["src"]) for figure in few for image in figure.images) <= 40_000
        shown = [figure.row_id for figure in of_kind(few, "strangest")]
        assert 0 < len(shown) < 50
        assert shown == table(writable_album)["row_id"].head(len(shown)).to_list()
        assert f"The {len(shown)} most anomalous of 350 images." in Text(report.page.read_text()).text

    def test_a_row_without_features_is_omitted(
        self, writable_album: Fitted, report: Report, figures: list[Figure]
    ) -> None:
        gone = of_kind(figures, "strangest")[3].row_id
        reported(writable_album, [ALL_ROWS])
        write_parquet(writable_album.paths.features(ALL_ROWS), album_rows().filter(pl.col("row_id") != gone).to_arrow())
        again = Figures(reported(writable_album, [ALL_ROWS]).page).figures
        previous = [figure.row_id for figure in of_kind(figures, "strangest")]
        assert [figure.row_id for figure in of_kind(again, "strangest")] == [row for row in previous if row != gone]

    def test_features_are_read_in_the_requested_order(self, album: Fitted) -> None:
        wanted = ["shelf/<7>.png", "shelf/<300>.png", "nowhere", "shelf/<0>.png"]
        features = features_of(pl.Series("row_id", wanted), ALL_ROWS, album.paths)
        assert features.equals(album_rows()[[7, 300, 0]])


class TestPictures:
    def test_images_and_reconstructions_are_those_of_the_bundle(self, album: Fitted, figures: list[Figure]) -> None:
        expected = pictures_of(album, figures)
        white = expected.image.max()
        for index, figure in enumerate(figures):
            assert len(figure.images) == 3
            for shown, values in ((0, expected.image[index]), (1, expected.reconstruction[index])):
                pixels = np.asarray(figure.picture(shown))
                assert pixels.shape == (12, 16, 3)
                np.testing.assert_allclose(pixels, np.minimum(values / white, 1) * 255, atol=0.5 + 1e-6)

    def test_an_image_is_shown_unchanged(self, figures: list[Figure]) -> None:
        landed = dict(album_rows().select("row_id", "image").rows())
        for figure in figures:  # some images contain white, so the scale does not change them
            assert np.asarray(figure.picture(0)).tobytes() == landed[figure.row_id]

    def test_all_residual_maps_of_a_page_share_one_scale(
        self, album: Fitted, report: Report, figures: list[Figure]
    ) -> None:
        residuals = pictures_of(album, figures).residual
        end = gallery_of(report).scale.end
        assert end / 10 < residuals.max() <= end
        for index, figure in enumerate(figures):
            along = np.asarray(LogNorm(1, end, clip=True)(residuals[index]))
            colours = matplotlib.colormaps["inferno"](np.rint(along * 255).astype(int), bytes=True)[..., :3]
            np.testing.assert_array_equal(np.asarray(figure.picture(2).convert("RGB")), colours)

    def test_the_frame_marks_the_spot_or_flat_window_of_the_explanation(
        self, album: Fitted, figures: list[Figure]
    ) -> None:
        explanations = album.bundle.explain(rows_of(figures), 9)
        residuals, is_spot = pictures_of(album, figures).residual, []
        for figure, parts, residual in zip(figures, explanations, residuals, strict=True):
            texts = {part.column: part.actual for part in parts}
            highest = float(texts["spot"].split()[0])
            is_spot.append(round(residual.max(), 1) == highest)
            assert is_spot[-1] or residual.max() > highest
            text = texts["spot" if is_spot[-1] else "flat"]
            row, column = map(int, first_match(r"at row (\d+), column (\d+)", text).groups())
            suffix = f": at most {residual.max():.1f} times the usual residual, framed"
            assert figure.images[2]["alt"].endswith(suffix)
            assert figure.frames[0] == figure.frames[1]
            left, top, width, height = (figure.frames[0][name] for name in ("left", "top", "width", "height"))
            assert [width * 16, height * 12] == pytest.approx([5, 5], abs=1e-3)
            assert (round(top * 12) + 2, round(left * 16) + 2) == (row, column)
        assert any(is_spot)

    def test_the_frame_marks_the_planted_spot(self, figures: list[Figure]) -> None:
        hits = 0
        planted = [figure for figure in of_kind(figures, "strangest") if int(figure.row_id[7:-5]) >= NORMAL]
        for figure in planted:
            index = int(figure.row_id[7:-5])
            across = figure.frames[0]["left"] * 16 - index % 13, figure.frames[0]["top"] * 12 - index % 9
            hits += all(-5 < shift < 3 for shift in across)
        assert len(planted) >= 30
        assert hits >= 0.9 * len(planted)

    def test_every_picture_has_an_alternative_text_and_a_size(self, figures: list[Figure]) -> None:
        for figure in figures:
            message = [image["alt"] for image in figure.images]
            assert message[0] == f"image of {figure.row_id}"
            assert message[1] == f"reconstruction of {figure.row_id}"
            assert re.fullmatch(
                rf"residual map of {re.escape(figure.row_id)}: at most [\d.]+ times the usual residual, framed",
                message[2],
            )
            assert {(image["width"], image["height"]) for image in figure.images} == {("160", "120")}

    def test_the_page_is_small_and_needs_no_external_resource(self, report: Report) -> None:
        page = report.page.read_text()
        assert len(page) < 2_000_000
        # URLs in scripts and schemas are identifiers. test_report_browser.py checks that no page sends a request.
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
        assert set(re.findall(r'<img src="(.{22})', page.split("<script", 1)[0])) == {PREFIX}
        assert "<300>" not in page

    def test_a_second_build_gives_the_same_page(self, writable_album: Fitted) -> None:
        first = reported(writable_album, [ALL_ROWS]).page.read_bytes()
        assert reported(writable_album, [ALL_ROWS]).page.read_bytes() == first


class TestBesideThePage:
    def test_the_materialization_shows_the_strangest_rows_within_50_kilobytes(
        self, album: Fitted, report: Report
    ) -> None:
        text = anomaly_report._pictures(gallery_of(report)).value
        heads, _, *rows = text.split("\n")
        assert heads == "| row | score | image, reconstruction, residual map |"
        assert len(text) < 50_000
        assert [row.split(" | ")[0] for row in rows] == [
            f"| {escape_markdown(row_id)}" for row_id in table(album)["row_id"].head(len(rows))
        ]
        assert 3 <= len(rows) <= 5
        panel = gallery_of(report).strangest[0]
        strip = Image.open(io.BytesIO(base64.b64decode(first_match(r"base64,([^)]+)\)", rows[0])[1])))
        assert strip.size == (3 * 128 + 2 * 6, 96)
        middle = np.asarray(strip.convert("RGB"))[:, 128 + 6 : 2 * 128 + 6]
        np.testing.assert_array_equal(middle[4::8, 4::8], np.asarray(panel.pictures[1]))

    def test_pictures_that_are_too_long_are_left_out(self, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(anomaly_report, "_PICTURE_BYTES", 100)
        assert anomaly_report._pictures(gallery_of(report)).value == "none"

    def test_a_table_has_no_pictures(self, dataset: Fitted) -> None:
        published(dataset, dataset.days[-2:])
        report = reported(dataset, dataset.days[-2:])
        assert report.gallery is None
        page = Text(report.page.read_text())
        assert "img" not in page.tags
        assert "Pictures" not in page.text


class TestLabelsWithoutEventTime:
    def test_held_out_rows_exclude_training_and_validation_rows(self, album: Fitted, report: Report) -> None:
        fitted = pl.concat([album.window.rows(part, album.paths) for part in ("train", "validation")])["row_id"]
        rows = table(album).join(album_rows().select("row_id", LABEL), on="row_id").drop_nulls(LABEL)
        rows = rows.filter(~pl.col("row_id").is_in(fitted.implode()))
        labels = json.loads(report.summary.read_text())["labels"]
        assert (labels["unknown"], labels["all_rows"]["rows"], labels["all_rows"]["anomalies"]) == (20, 330, 30)
        assert (labels["held_out"]["rows"], labels["held_out"]["anomalies"]) == (rows.height, 30)
        expected = roc_auc_score(rows[LABEL].to_numpy(), rows["score"].to_numpy())
        assert labels["held_out"]["auroc"] == pytest.approx(expected, abs=1e-12)
        assert "The training excludes known anomalies" in Text(report.page.read_text()).text

    def test_held_out_rows_are_unknown_if_the_rows_have_changed(self, writable_album: Fitted) -> None:
        write_parquet(writable_album.paths.features(ALL_ROWS), album_rows().tail(349).to_arrow())
        published(writable_album, [ALL_ROWS])
        report = reported(writable_album, [ALL_ROWS])
        assert report.labels is not None
        assert report.labels.held_out is None
        assert report.labels.all_rows.rows == 329
        assert (
            "Held out: unknown, because the images have changed since the training"
            in Text(report.page.read_text()).text
        )

    def test_a_page_of_whole_images_speaks_of_images(self, report: Report) -> None:
        page = report.page.read_text()
        assert "The images of the training are included." in Text(page).text
        assert speaks_of_rows(page) == []

    def test_a_page_without_event_time_does_not_mention_days(self, album: Fitted, report: Report) -> None:
        page = " ".join(Text(report.page.read_text()).text.split())
        sizes = [album.window.rows(part, album.paths).height for part in ("train", "validation", "calibration")]
        assert f"{sizes[0]} images, validated on {sizes[1]} other images" in page
        assert f"calibrated on {sizes[2]} other images" in page.replace("calibrated on", "calibrated on ").replace(
            "  ", " "
        )
        assert not re.search(r"\bdays? |\ball to all\b", page[page.index("album:") :].split("Most anomalous images")[0])
        assert re.search(r"Quarantine\s*0 images\s*of the landed files", page)
        assert "Completeness" not in page
