"""The landing folder: paths of the YAML are relative to the project's folder."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from ae_pipeline.common.errors import StorageError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.ingestion import landing_folder as landing_folder_module
from ae_pipeline.ingestion.landing_folder import landed_files, landing_folder, list_landing
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.storage.dataset import Dataset
from tests.support.datasets import LandedDataset, make_dataset


def dataset(root: Path, path: str | None) -> Dataset:
    """Return a dataset of the project in a folder, whose data folder is elsewhere."""
    workspace = Workspace(
        data_folder=str(root / "state" / "data"),
        mlflow_folder=str(root / "mlruns"),
        project_folder=str(root / "project"),
    )
    source = {"path": path} if path else {}
    return workspace.dataset(PipelineConfig.model_validate({"dataset": "d", "identity": ["id"], "source": source}))


def test_a_relative_path_is_below_the_project(tmp_path: Path) -> None:
    assert landing_folder(dataset(tmp_path, "incoming/orders")) == tmp_path / "project" / "incoming" / "orders"


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    assert landing_folder(dataset(tmp_path, "/mnt/orders")) == Path("/mnt/orders")


def test_without_a_path_files_land_in_the_data_folder(tmp_path: Path) -> None:
    assert landing_folder(dataset(tmp_path, None)) == tmp_path / "state" / "data" / "landing" / "d"


def test_a_folder_that_exists_only_below_the_data_folder_is_used_with_a_warning(tmp_path: Path) -> None:
    former = tmp_path / "state" / "data" / "incoming"
    former.mkdir(parents=True)
    with pytest.warns(
        DeprecationWarning, match=r"'incoming' in source\.path.*write '\.\./state/data/incoming' instead"
    ):
        assert landing_folder(dataset(tmp_path, "incoming")) == former
    (tmp_path / "project" / "incoming").mkdir(parents=True)
    assert landing_folder(dataset(tmp_path, "incoming")) == tmp_path / "project" / "incoming"


def test_the_new_path_of_the_warning_is_right(tmp_path: Path) -> None:
    former = tmp_path / "state" / "data" / "incoming"
    former.mkdir(parents=True)
    assert landing_folder(dataset(tmp_path, "../state/data/incoming")).resolve() == former


def test_the_default_project_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = replace(dataset(tmp_path, "incoming"), paths=replace(dataset(tmp_path, None).paths, project=Path()))
    (tmp_path / "incoming").mkdir()
    assert landing_folder(here).resolve() == tmp_path / "incoming"


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (".ipynb_checkpoints", "the folder '.ipynb_checkpoints' is hidden"),
        (".Trash-1000/files", "the folder '.Trash-1000' is hidden"),
        ("a/.git", "the folder '.git' is hidden"),
        ("__MACOSX/b", "the folder '__MACOSX' belongs to archives of macOS"),
        ("@eaDir/a.csv", "the folder '@eaDir' belongs to a network storage"),
        ("$RECYCLE.BIN", "the folder '$RECYCLE.BIN' belongs to Windows"),
    ],
)
def test_files_in_hidden_and_foreign_folders_are_named_and_not_read(tmp_path: Path, folder: str, reason: str) -> None:
    shop = dataset(tmp_path, None)
    for name in ("a.csv", f"{folder}/b.csv"):
        path = landing_folder(shop) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("id\n1\n")
    found = list_landing(shop)
    assert list(found.files) == ["a.csv"]
    assert found.others[f"{folder}/b.csv"].startswith(reason)


def test_a_linked_folder_is_named(tmp_path: Path) -> None:
    shop, elsewhere = dataset(tmp_path, None), tmp_path / "elsewhere"
    for folder in (landing_folder(shop), elsewhere):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.csv").write_text("id\n1\n")
    (landing_folder(shop) / "linked").symlink_to(elsewhere)
    found = list_landing(shop)
    assert list(found.files) == ["a.csv"]
    assert found.others == {"linked": "it is a linked folder, which is not followed; copy it, or set source.path"}


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, scan = dataset(tmp_path, None), os.scandir
    for name in ("a.csv", "locked/b.csv", "lost+found/c.csv"):
        path = landing_folder(shop) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("id\n1\n")
    closed = ["locked", "lost+found"]

    def refuse(path: str) -> Any:
        if Path(path).name in closed:
            raise PermissionError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_landing(shop).files.keys() == {"a.csv"}
    assert list_landing(shop).others == {
        "locked": "the folder cannot be read; grant this user read permission",
        "lost+found": "the folder 'lost+found' belongs to the file system",
    }
    closed.append("d")
    with pytest.raises(StorageError, match="/d cannot be read; grant this user read permission"):
        list_landing(shop)


def test_images_with_a_suffix_of_another_kind_are_named(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=["file"], event_time=None, start=None, end=None, images={})
    for name, content in (("a.gif", b"\xff\xd8\xff\xe0"), ("IMG_1", b"\x89PNG\r\n\x1a\n"), ("b.gif2", b"GIF89a")):
        (shop.land("c.png", "x").parent / name).write_bytes(content)
    assert list_landing(shop).others == {
        "IMG_1": "it has no suffix, but it holds an image that can be read; rename it to .png or .jpg",
        "a.gif": "its suffix '.gif' is not one of a known format, but it holds an image that can be read; rename it to "
        ".png or .jpg",
        "b.gif2": "its suffix '.gif2' is not one of a known format; convert images to PNG, JPEG, WebP, BMP or TIFF",
    }


def image_dataset(root: Path, files: dict[str, bytes], **settings: Any) -> LandedDataset:
    """Return a dataset of image files in whose landing folder files lie."""
    nothing: dict[str, Any] = {"event_time": None, "start": None, "end": None}
    shop = make_dataset(root, identity=["file"], images={}, **nothing, **settings)
    for name, content in files.items():
        shop.land(name, content)
    return shop


PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"


def test_each_file_has_its_own_reason_and_not_that_of_another_with_its_suffix(tmp_path: Path) -> None:
    gifs = {f"b{index}.gif": b"GIF89a" for index in range(5)}
    pngs = {f"scan{index}": PNG for index in range(5)}
    others = list_landing(image_dataset(tmp_path, {"CHECKSUMS": b"0a1b", "a.gif": JPEG, **gifs, **pngs})).others
    hints = {name for name, reason in others.items() if "it holds an image that can be read" in reason}
    assert hints == {"a.gif", *pngs}


def test_only_a_suffix_is_explained_by_a_content(tmp_path: Path) -> None:
    hidden = {".DS_Store": PNG, ".cache/ab12": PNG, "__MACOSX/a.gif": JPEG, "other/b.gif": JPEG}
    others = list_landing(image_dataset(tmp_path, {"sub/c": PNG, **hidden}, source={"pattern": "sub/*"})).others
    assert [name for name, reason in others.items() if "it holds an image" in reason] == ["sub/c"]


def test_few_files_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(landing_folder_module, "_LOOKS", 3)

    def holds_image(path: Path) -> bool:
        looked.append(path)
        return True

    monkeypatch.setattr(landing_folder_module, "_holds_image", holds_image)
    found = list_landing(image_dataset(tmp_path, {f"scan.{index:06d}": PNG for index in range(5)}))
    assert len(looked) == 3
    assert found.describe_others() == (
        "5 files not read (scan.000000 and 2 more: its suffix is not one of a known format, but it holds an image that "
        "can be read; rename it to .png or .jpg; scan.000003 and 1 more: its suffix is not one of a known format; "
        "convert images to PNG, JPEG, WebP, BMP or TIFF)"
    )


def test_a_text_that_starts_like_a_bmp_is_none(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("L", (3, 2)).save(picture, "BMP")
    others = list_landing(
        image_dataset(tmp_path, {"a": b"BMW and other makes of cars", "b": picture.getvalue()})
    ).others
    assert ["it holds an image" in others[name] for name in ("a", "b")] == [False, True]


def test_numbered_names_do_not_hide_other_reasons(tmp_path: Path) -> None:
    names = [
        *(f"{index}.csv" for index in range(30)),
        *(f"1.2.840.{index:06d}" for index in range(30)),
        "a.heic",
        "b.psd",
    ]
    described = list_landing(image_dataset(tmp_path, dict.fromkeys(names, b"x"))).describe_others()
    assert "0.csv and 29 more: a .csv file holds no images; if it describes images, set images.metadata to" in described
    assert "1.2.840.000000 and 29 more: its suffix is not one of a known format; convert" in described
    assert "a.heic: its suffix '.heic' is" in described
    assert "b.psd: its suffix '.psd' is" in described


class TestMasks:
    SETTINGS: ClassVar[dict[str, Any]] = {
        "identity": ["file"],
        "event_time": None,
        "start": None,
        "end": None,
        "images": {"path": "(?P<kind>[a-z]+)/[^/]+$", "masks": "truth/{kind}/{stem}.png"},
    }

    def test_masks_without_an_image_are_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        shop = make_dataset(tmp_path, **self.SETTINGS)
        for name in ("hole/1.jpg", "hole/2.jpg", "truth/hole/1.png", "truth/hole/3.png", ".git/truth/hole/4.png"):
            shop.land(name, "x")
        landing = list_landing(shop)
        assert list(landing.files) == ["hole/1.jpg", "hole/2.jpg"]
        assert list(landing.masks) == ["truth/hole/1.png", "truth/hole/3.png"]
        landing.log_masks(shop.config.images or ImagesConfig())
        assert "1 of 2 masks belong to no image that landed (truth/hole/3.png); rename them, or" in caplog.text

    def test_a_pattern_that_takes_all_images_for_masks_is_explained(self, tmp_path: Path) -> None:
        shop = make_dataset(tmp_path, **{**self.SETTINGS, "images": {"masks": "{stem}.png"}})
        for name in ("1.png", "2.png"):
            shop.land(name, "x")
        message = r"all of 2 files in .* are masks by images\.masks='{stem}\.png', and none is an image; correct"
        with pytest.raises(StorageError, match=message):
            landed_files(shop)
