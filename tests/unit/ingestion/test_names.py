"""Names of files and folders: bytes that are not UTF-8, and characters that mean something in globs and URIs."""

import os
from pathlib import Path

import polars as pl
import pytest

from ae_pipeline.common.text import printable_path
from ae_pipeline.ingestion.landing_folder import LandingFolder, landed_files, list_landing
from ae_pipeline.ingestion.raw import count_duplicates
from tests.support.datasets import DAY, HEADER, LandedDataset, line, make_dataset

pytestmark = pytest.mark.slow

FOLDERS = [
    "a b",
    "a%20b",
    "what?",
    "data[1]",
    "a*b",
    "a#b",
    "Größe €",
    "a'b",
    'a"b',
    "a;b&c=d",
    "{x}",
    "~",
    "a:b",
    "日本",
]
NAMES = [
    b"caf\xe9.csv",
    b"caf\xc3\xa9.csv",
    rb"caf\xe9.csv",
    rb"caf\\xe9.csv",
    b"a\nb.csv",
    b"a b%20[1]?*.csv",
    b"\xff\xfe.csv",
]


def land_bytes(shop: LandedDataset, name: bytes, text: str) -> None:
    shop.paths.landing.mkdir(parents=True, exist_ok=True)
    path = os.path.join(os.fsencode(shop.paths.landing), name)  # noqa: PTH118
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(text.encode())


def test_rows_of_files_with_any_name_are_read(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    for number, name in enumerate(NAMES):
        land_bytes(shop, name, HEADER + line(number) + line("", city="nowhere"))
    assert shop.ids() == list(range(len(NAMES)))
    ledger = shop.ingest().ledger
    assert len(ledger.files) == len({source for source, *_ in shop.quarantine()}) == len(NAMES)
    assert {source for source, *_ in shop.quarantine()} == ledger.files.keys()
    assert shop.ingest().read == ()
    for printed in ledger.files:
        printed.encode()
        assert printed.isprintable()
    assert {"caf\\xe9.csv", "café.csv", "caf\\\\xe9.csv", "a\\x0ab.csv"} < ledger.files.keys()


def test_different_paths_have_different_printable_ones() -> None:
    parts = ["\\", "\\\\", "\udce9", "\\xe9", "é", "x", "\n", "\\x0a", "e9"]
    paths = {a + b + c for a in parts for b in parts for c in parts}
    printable = {printable_path(path) for path in paths}
    assert len(printable) == len(paths)
    assert all(each.encode().decode() == each and each.isprintable() for each in printable)


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_rows_are_read_in_folders_with_any_name(folder: str, tmp_path: Path) -> None:
    shop = make_dataset(tmp_path / folder / "data", source={"path": str(tmp_path / folder / "landing")})
    shop.land(f"{folder}/a.csv", HEADER + line(1) + line(2))
    shop.land(f"{folder}/b.csv", HEADER + line(2) + line(3))
    assert shop.ids() == [1, 2, 3]
    assert count_duplicates([DAY], shop.paths) == 0
    assert pl.read_parquet(shop.paths.raw(DAY), glob=False).height == 3


def test_files_that_are_not_read_are_named_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shop = make_dataset(tmp_path, source={"pattern": "sales/*"})
    shop.land("sales/a.csv", HEADER + line(1))
    for name in ("sales/_b.csv", "sales/.c.csv", "sales/d.docx", "sales/e", "other/f.csv"):
        shop.land(name, "x")
    (shop.paths.landing / "sales" / "g.csv").symlink_to("nowhere")
    others = list_landing(shop).others
    assert {name: reason.split(",")[0] for name, reason in others.items()} == {
        "other/f.csv": "it does not match 'sales/*'",
        "sales/.c.csv": "its name starts with '.'",
        "sales/_b.csv": "its name starts with '_'",
        "sales/d.docx": "its suffix '.docx' is not one of a known format",
        "sales/e": "it has no suffix",
        "sales/g.csv": "it is no regular file",
    }
    assert list(landed_files(shop)) == ["sales/a.csv"]
    shop.ingest()
    assert "landing/shop: 6 files not read (other/f.csv: it does not match 'sales/*'; sales/_b.csv:" in caplog.text


def test_every_reason_is_named_with_its_number_of_files(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=["file"], event_time=None, start=None, end=None, images={})
    names = [".DS_Store", "d.png", ".git/e.png", "b/c0.nef", "b/c1.nef", *(f"a{index:02d}.heic" for index in range(30))]
    for name in names:
        shop.land(name, "x")
    suffix = "is not one of a known format; convert images to PNG, JPEG, WebP, BMP or TIFF"
    assert list_landing(shop).describe_others() == (
        f"34 files not read (a00.heic and 29 more: its suffix '.heic' {suffix}; b/c0.nef and 1 more: its suffix "
        f"'.nef' {suffix}; .DS_Store: its name starts with '.', as that of a file that is still being written; "
        ".git/e.png: the folder '.git' is hidden)"
    )


def test_few_reasons_are_named_and_the_rest_is_counted() -> None:
    others = {f"{index}.{suffix}": f"reason {suffix}" for suffix in range(10) for index in range(10 - suffix)}
    described = LandingFolder({}, others).describe_others()
    assert described.startswith("55 files not read (0.0 and 9 more: reason 0; 0.1 and 8 more: reason 1; ")
    assert described.endswith("0.7 and 2 more: reason 7; and 3 for other reasons)")


def test_pictures_with_a_leading_underscore_are_read(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=["file"], event_time=None, start=None, end=None, images={})
    for name in ("_MG_0001.JPG", "_DSC0002.jpg", "IMG_0003.jpg", "_a.csv", ".x.png"):
        shop.land(name, "x")
    assert sorted(landed_files(shop)) == ["IMG_0003.jpg", "_DSC0002.jpg", "_MG_0001.JPG"]
