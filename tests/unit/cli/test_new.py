"""`ae-pipeline new`: what it prints, writes and refuses."""

import os
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ae_pipeline.cli.main import main
from ae_pipeline.cli.new import Plan, plan_dataset
from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.config.columns import as_declaration
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.masks import mask_path
from tests.support.shop import DAYS, orders_csv


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One CSV file with orders for each day."""
    folder = tmp_path / "source"
    folder.mkdir()
    for day in DAYS:
        (folder / f"orders_{day}.csv").write_text(orders_csv(day))
    return sorted(folder.iterdir())


def plan(root: Path, files: list[Path], name: str = "orders") -> Plan:
    """Return the plan for files."""
    return plan_dataset(name, files, root / "defs" / name / "defs.yaml", root / "landing" / name)


def attributes(text: str) -> dict[str, Any]:
    """Return the attributes of a YAML."""
    content: dict[str, Any] = yaml.safe_load(text)["attributes"]
    return content


def test_files_are_copied_and_the_yaml_loads(tmp_path: Path, files: list[Path]) -> None:
    proposed = plan(tmp_path, files)
    config = PipelineConfig.model_validate(attributes(proposed.text))
    assert (config.identity, config.event_time, config.exclude) == (("order_id",), "created_at", ("order_id",))
    assert (str(config.start), str(config.end)) == (DAYS[0], DAYS[-1])
    assert "  identity: [order_id] # no value occurs twice in all 960 rows\n" in proposed.text
    assert proposed.describe().splitlines() == [
        f"would write  {tmp_path}/defs/orders/defs.yaml",
        f"would copy   24 files to {tmp_path}/landing/orders",
    ]
    assert not (tmp_path / "defs").exists()
    proposed.execute()
    assert (tmp_path / "defs/orders/defs.yaml").read_text() == proposed.text
    assert [path.read_bytes() for path in sorted((tmp_path / "landing/orders").iterdir())] == [
        path.read_bytes() for path in files
    ]


def test_folder_stays_where_it_is(tmp_path: Path, files: list[Path]) -> None:
    (files[0].parent / "_notes.csv").write_text("not,read\n")
    proposed = plan(tmp_path, [files[0].parent])
    assert proposed.copies == {}
    assert attributes(proposed.text)["source"] == {"path": str(files[0].parent)}


def test_files_in_the_landing_folder_are_not_copied(tmp_path: Path, files: list[Path]) -> None:
    landing = tmp_path / "landing" / "orders"
    shutil.copytree(files[0].parent, landing)
    for given in ([landing], sorted(landing.iterdir())):
        proposed = plan(tmp_path, given)
        assert (proposed.copies, "source" in attributes(proposed.text)) == ({}, False)


def test_unreadable_files_are_named(tmp_path: Path, files: list[Path]) -> None:
    files[0].write_bytes(b"")
    files[1].write_text(orders_csv(DAYS[1]) + "1,2\n")
    first, second = plan(tmp_path, files).remarks
    assert first.startswith(f"orders_{DAYS[0]}.csv would be refused: the file is empty")
    assert second.startswith(f"1 row of orders_{DAYS[1]}.csv would go to quarantine, the first: the line has 2 values")


def test_names_with_special_characters_load(tmp_path: Path) -> None:
    file = tmp_path / "a b.csv"
    rows = "\n".join(f"{index},{index % 3},x" for index in range(50))
    file.write_text(f"id: #,'shop' nr,no\n{rows}\n")
    content = attributes(plan(tmp_path, [file]).text)
    assert content["identity"] == ["id: #"]
    assert content["columns"] == {"'shop' nr": "category"}


def test_rows_without_identity_or_time_load(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("size,weight\n" + "".join(f"{index % 7},{index / 3:.4f}\n" for index in range(100)))
    text = plan(tmp_path, [file]).text
    config = PipelineConfig.model_validate(attributes(text))
    assert (config.identity, config.event_time, config.exclude) == ((), None, ())
    assert "  # No event_time: no column holds a time in nearly every row. All rows are one partition.\n" in text


def test_commented_choices_load_when_a_person_uncomments_them(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows = (f"{n % 12 + 1:02d}.{n % 11 + 1:02d}.2025 10:00,{1_700_000_000 + 7200 * n},{n % 2}" for n in range(400))
    file.write_text("\n".join(["booked,ts,target", *rows]) + "\n")
    text = plan(tmp_path, [file]).text
    assert attributes(text)["columns"] == {"ts": {"type": "timestamp", "format": "epoch_s"}}
    assert PipelineConfig.model_validate(attributes(text)).event_time == "ts"
    config = PipelineConfig.model_validate(
        attributes(text.replace("# booked:", "booked:").replace("# label:", "label:"))
    )
    assert as_declaration(config.columns["booked"]).format == "%d.%m.%Y %H:%M"
    assert config.label == "target = 1"


@pytest.mark.parametrize("name", ["Orders", "1st", "a-b", "../up"])
def test_invalid_name_is_refused(tmp_path: Path, files: list[Path], name: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid name"):
        plan(tmp_path, files, name)


def test_existing_dataset_is_never_replaced(tmp_path: Path, files: list[Path]) -> None:
    plan(tmp_path, files).execute()
    with pytest.raises(ConfigError, match=r"the dataset 'orders' exists: .*defs.yaml; edit it, or choose another name"):
        plan(tmp_path, files)


def test_other_file_of_the_same_name_is_not_replaced(tmp_path: Path, files: list[Path]) -> None:
    landing = tmp_path / "landing" / "orders"
    landing.mkdir(parents=True)
    (landing / files[0].name).write_text("other\n")
    with pytest.raises(StorageError, match="exists and has another content"):
        plan(tmp_path, files)
    (landing / files[0].name).rename(landing / "other.csv")
    assert plan(tmp_path, files).remarks == (f"{landing} holds other files, which belong to the dataset too",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["missing.csv"], "missing.csv does not exist; correct the path"),
        (["source", "source"], "source is a folder; give one folder alone, or files"),
        (["empty"], r"holds no .* file"),
        (["photo.png"], r"photo.png is an image, and a proposal needs the folder"),
        (["source/a.csv", "copy/a.csv"], "two files have the name 'a.csv'"),
        (["broken.csv"], "none of 1 file has a readable row; broken.csv would be refused: the file is empty"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, given: list[str], message: str) -> None:
    for folder in ("source", "copy", "empty"):
        (tmp_path / folder).mkdir()
    for file in ("source/a.csv", "copy/a.csv"):
        (tmp_path / file).write_text("id\n1\n")
    for file in ("broken.csv", "photo.png"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(StorageError, match=message):
        plan(tmp_path, [tmp_path / name for name in given])


class TestCommand:
    """The command itself, with its project in a folder of its own."""

    @pytest.fixture(autouse=True)
    def project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "defs").mkdir()
        monkeypatch.setenv("AE_PIPELINE_DEFS", str(tmp_path / "defs"))
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("AE_PIPELINE_DATA", raising=False)

    @staticmethod
    def written(root: Path) -> int:
        """Return the number of files that the command has written."""
        return sum(path.is_file() for folder in ("defs", "data") for path in (root / folder).rglob("*"))

    def test_without_a_terminal_it_only_prints(
        self, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: False)
        assert main(["new", "orders", *map(str, files)]) == 0
        printed = capsys.readouterr().out
        assert "would copy   24 files to" in printed
        assert "Nothing was written. Run the command again with --yes" in printed
        assert self.written(tmp_path) == 0

    @pytest.mark.parametrize(("answer", "count"), [("y", 25), ("Yes ", 25), ("", 0), ("n", 0)])
    def test_on_a_terminal_it_asks(
        self, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, answer: str, count: int
    ) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda question: answer)
        assert main(["new", "orders", *map(str, files)]) == 0
        assert self.written(tmp_path) == count

    def test_yes_writes_the_yaml_once(
        self, tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["new", "orders", "--yes", *map(str, files)]
        assert main(command) == 0
        target = tmp_path / "defs" / "orders" / "defs.yaml"
        assert attributes(target.read_text())["dataset"] == "orders"
        assert capsys.readouterr().out.endswith(f"look at {target}, then run `ae-pipeline run orders`.\n")
        assert main(command) == 1
        assert "the dataset 'orders' exists" in capsys.readouterr().err


def land_images(root: Path, names: list[str], size: tuple[int, int] = (700, 900), mode: str = "RGB") -> Path:
    """Write images of one color below a folder, and return the folder."""
    for name in names:
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (size[1], size[0])).save(path)
    return root / "photos"


def test_images_are_given_by_their_folder(tmp_path: Path) -> None:
    folder = land_images(tmp_path, ["IMG_0001.JPG", "_DSC0002.JPG"])
    message = f"_DSC0002.JPG is an image, and a proposal needs the folder of all images; give {folder}"
    with pytest.raises(StorageError, match=re.escape(message)):
        plan(tmp_path, [folder / "_DSC0002.JPG", folder / "IMG_0001.JPG"], "bottle")


@pytest.mark.parametrize(("size", "augmentation"), [((700, 900), "turns"), ((64, 48), "none")])
def test_patches_are_augmented_and_whole_images_are_not(
    size: tuple[int, int], augmentation: str, tmp_path: Path
) -> None:
    folder = land_images(tmp_path, [f"{index:02d}.png" for index in range(20)], size)
    config = PipelineConfig.model_validate(attributes(plan(tmp_path, [folder], "tiles").text))
    assert config.training.augmentation == augmentation


def test_photographs_of_a_phone_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = land_images(tmp_path, [f"IMG_{index:04d}.JPG" for index in range(20)])
    assert plan(tmp_path, [folder], "bottle").remarks == ()
    for name in ("IMG_0100.HEIC", "IMG_0101.heic", ".trashed.heic"):
        (folder / name).write_bytes(b"")
    remark = "2 images such as IMG_0100.HEIC cannot be read; convert them to JPEG or PNG"
    assert plan(tmp_path, [folder], "bottle").remarks == (remark,)
    for path in folder.glob("*.JPG"):
        path.unlink()
    with pytest.raises(StorageError, match=f"holds no image that can be read: {remark}"):
        plan(tmp_path, [folder], "bottle")


def test_the_layout_of_mvtec_is_recognized(tmp_path: Path) -> None:
    names = [f"bottle/train/good/{index:03d}.png" for index in range(20)]
    names += [f"bottle/test/{kind}/{index:03d}.png" for kind in ("good", "broken_large") for index in range(3)]
    names += [f"bottle/ground_truth/broken_large/{index:03d}_mask.png" for index in range(3)]
    folder = land_images(tmp_path, [name.removeprefix("bottle/") for name in names])
    (folder / "readme.txt").write_text("about the data")
    text = plan(tmp_path, [folder], "bottle").text
    config = PipelineConfig.model_validate(attributes(text))
    assert "# Proposed from 26 images in the layout of MVTec AD.\n" in text
    assert (config.identity, config.label) == (("file", "top", "left"), "defect <> 'good'")
    assert (config.training.where, config.training.only_normal) == ("split = 'train'", True)
    assert config.training.augmentation == "turns"
    assert config.images is not None
    assert (config.images.resize, config.images.patch, config.images.mode) == (256, 32, None)
    mask = mask_path("test/broken_large/002.png", config.images)
    assert mask == "ground_truth/broken_large/002_mask.png"
    assert (folder / mask).is_file()


def test_a_folder_of_many_products_in_the_layout_of_mvtec_keeps_their_masks(tmp_path: Path) -> None:
    names = [f"{kind}/train/good/{index:03d}.png" for kind in ("bottle", "cable") for index in range(20)]
    names += ["bottle/test/broken/000.png", "bottle/ground_truth/broken/000_mask.png"]
    text = plan(tmp_path, [folder := land_images(tmp_path, names)], "products").text
    assert "# Proposed from 41 images in the layout of MVTec AD, with a folder for each product (" in text
    config = PipelineConfig.model_validate(attributes(text))
    assert config.images is not None
    mask = mask_path("bottle/test/broken/000.png", config.images)
    assert mask == "bottle/ground_truth/broken/000_mask.png"
    assert (folder / mask).is_file()
    assert mask_path("bottle/ground_truth/broken/000_mask.png", config.images) is None
    assert re.search(config.images.path or "", mask) is None


def test_the_layout_of_visa_is_recognized(tmp_path: Path) -> None:
    names = [f"Data/Images/Normal/{index:04d}.JPG" for index in range(20)]
    names += [f"Data/Images/Anomaly/{index:03d}.JPG" for index in range(3)]
    names += [f"Data/Masks/Anomaly/{index:03d}.png" for index in range(3)]
    folder = land_images(tmp_path, names)
    (folder / "image_anno.csv").write_text("image,label,mask\n")
    config = PipelineConfig.model_validate(attributes(plan(tmp_path, [folder], "candle").text))
    assert (config.source.pattern, config.label) == ("Data/Images/**/*", "kind <> 'Normal'")
    assert config.images is not None
    mask = mask_path("Data/Images/Anomaly/001.JPG", config.images)
    assert mask == "Data/Masks/Anomaly/001.png"
    assert (folder / mask).is_file()


def test_a_thumbnail_among_photographs_does_not_decide_on_the_size(tmp_path: Path) -> None:
    land_images(tmp_path, [f"{index}.JPG" for index in range(20)])
    folder = land_images(tmp_path, ["thumbnail.png"], (80, 100))
    remark = "the shorter side; the images have up to 900 pixels; 1 smaller image of 21 will be enlarged"
    assert f"    resize: 256 # {remark}\n" in plan(tmp_path, [folder], "bottle").text
    folder = land_images(tmp_path, [f"thumbnail_{index}.png" for index in range(20)], (80, 100))
    text = plan(tmp_path, [folder], "bottle").text
    assert "resize" not in text
    assert "    patch: 32 # " in text


def test_small_images_are_rows_of_one_size_and_mode(tmp_path: Path) -> None:
    folder = land_images(tmp_path, [f"{index}.png" for index in range(19)], (28, 30), "L")
    Image.fromarray(np.zeros((28, 20, 3), np.uint8)).save(folder / "color.png")
    (folder / "metadata.csv").write_text("file,line\n0.png,L1\n")
    config = PipelineConfig.model_validate(attributes(plan(tmp_path, [folder], "digits").text))
    assert (config.identity, config.label) == (("file",), None)
    assert config.images is not None
    assert (config.images.patch, config.images.mode, config.images.resize) == (None, "rgb", (28, 30))


def test_the_longest_side_decides_whether_an_image_is_a_row(tmp_path: Path) -> None:
    land_images(tmp_path, [f"a{index}.png" for index in range(10)], (20, 90), "L")
    folder = land_images(tmp_path, [f"b{index}.png" for index in range(10)], (30, 30), "L")
    config = PipelineConfig.model_validate(attributes(plan(tmp_path, [folder], "digits").text))
    assert config.identity == ("file", "top", "left")


def test_what_lies_beside_images_decides_nothing(tmp_path: Path) -> None:
    folder = land_images(tmp_path, [f"{index}.jpg" for index in range(20)], (28, 30))
    land_images(tmp_path, ["@eaDir/0.jpg", ".git/1.jpg", "__MACOSX/2.jpg"], (9, 9))
    annotations = [f"labels/{index}.txt" for index in range(20)]
    for name in [*annotations, "classes.txt", *(f".git/{index}.json" for index in range(30))]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("0 0.5 0.5 0.1 0.1\n")
    huge = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    for name, body in (("huge.png", huge), ("wide.png", struct.pack(">IIBBBBB", 10**4, 10**4, 8, 0, 0, 0, 0))):
        header = b"IHDR" + body
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)))
    Image.new("L", (5, 5)).save(folder / "a.png", "GIF")
    (folder / os.fsdecode(b"caf\xe9.heic")).write_bytes(b"")
    made = plan(tmp_path, [folder], "digits")
    assert "# Proposed from 23 images.\n" in made.text
    assert made.remarks == ("1 image such as caf\\xe9.heic cannot be read; convert them to JPEG or PNG",)
    config = PipelineConfig.model_validate(attributes(made.text))
    assert config.images is not None
    assert (config.images.mode, config.images.patch) == (None, None)


def test_the_size_of_a_photograph_is_that_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(20):
        Image.new("RGB", (40, 30)).save(folder / f"{index}.jpg", exif=exif if index else Image.Exif())
    assert "resize: [40, 30] # the images have 2 sizes" in plan(tmp_path, [folder], "digits").text


@pytest.mark.parametrize(("tables", "plots"), [(12, 10), (30, 19), (26, 25)])
def test_plots_with_the_names_of_tables_are_no_images_to_train_on(tmp_path: Path, tables: int, plots: int) -> None:
    folder = land_images(tmp_path, [f"2024-{index:02d}.png" for index in range(plots)], (28, 30))
    for index in range(tables):
        lines = "".join(f"{index}-{row},{row}\n" for row in range(30))
        (folder / f"2024-{index:02d}.csv").write_text(f"id,amount\n{lines}")
    assert attributes(plan(tmp_path, [folder], "sales").text)["identity"] == ["id"]


def test_a_table_beside_a_few_images_is_proposed(tmp_path: Path) -> None:
    folder = land_images(tmp_path, [f"{index}.png" for index in range(10)], (28, 30))
    lines = "".join(f"{row},{row}\n" for row in range(30))
    (folder / "orders.csv").write_text(f"id,amount\n{lines}")
    assert attributes(plan(tmp_path, [folder], "sales").text)["identity"] == ["id"]


@pytest.mark.parametrize("beside", ["metadata.csv", "0.json", "readme.txt"])
def test_what_describes_a_few_images_is_no_table(tmp_path: Path, beside: str) -> None:
    folder = land_images(tmp_path, [f"{index}.png" for index in range(10)], (28, 30))
    (folder / beside).write_text("file,line\n0.png,L1\n")
    with pytest.raises(StorageError, match="holds 10 images, but a training needs at least 20"):
        plan(tmp_path, [folder], "digits")


def test_five_images_are_too_few(tmp_path: Path) -> None:
    folder = land_images(tmp_path, [f"{index}.png" for index in range(5)], (28, 30))
    with pytest.raises(StorageError, match="holds 5 images, but a training needs at least 20; add images"):
        plan(tmp_path, [folder], "digits")
