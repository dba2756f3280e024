"""Tests of ae_pipeline/ingestion/packs.py: the images of a batch and day have one staged copy."""

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion import batch
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.ingestion.packs import stored_entries
from ae_pipeline.ingestion.withdrawals import change_days
from ae_pipeline.lifecycle.doctor import landed
from ae_pipeline.lifecycle.doctor.landed import ledger_problems
from tests.support.datasets import LandedDataset, make_dataset

FIRST, SECOND, THIRD = "2024-03-01", "2024-03-02", "2024-03-03"
FILES = (f"a_{FIRST}.png", f"a_{SECOND}.png", f"b_{FIRST}.png", f"b_{SECOND}.png", f"c_{SECOND}.png")
"""The images of two days, in alternation."""


def png(value: int) -> bytes:
    """Return an image of 4×5 pixels of one value."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def album(root: Path, **settings: Any) -> LandedDataset:
    """Return a dataset of images whose names hold a part and a day."""
    images = {"path": r"(?P<part>[a-z]+)_(?P<time>[0-9-]{10})", **settings.pop("images", {})}
    return make_dataset(root, identity=settings.pop("identity", ["file"]), images=images, **settings)


def shop_of_five_images(root: Path, **settings: Any) -> LandedDataset:
    """Return a dataset of five images with the values 1 to 5."""
    shop = album(root, **settings)
    for value, name in enumerate(FILES, start=1):
        shop.land(name, png(value))
    return shop


def values(shop: LandedDataset) -> dict[str, set[int]]:
    """Return the values of the pixels of each landed image."""
    return {name: set(data) for name, data in shop.rows("file", "image")}


def copies(shop: LandedDataset) -> dict[str, int]:
    """Return the number of rows of each staged copy."""
    folder = shop.paths.staged("_").parent
    return {path.stem: pl.read_parquet(path, glob=False).height for path in folder.glob("*")}


def test_the_images_of_a_day_have_one_copy(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path)
    assert values(shop) == {name: {value} for value, name in enumerate(FILES, start=1)}
    assert sorted(copies(shop).values()) == [2, 3]
    assert shop.ingest().read == ()
    entries = shop.ingest().ledger.files
    assert {name: entry.days for name, entry in entries.items()} == {name: {name[2:12]: 1} for name in FILES}
    assert len({entry.staged for entry in entries.values()}) == len(FILES)
    known = [stored_entries(path) for path in shop.paths.staged("_").parent.iterdir()]
    assert {name: entry for entries in known for name, entry in entries.items()} == entries


PATCHES: dict[str, Any] = {"identity": ["file", "top", "left"], "images": {"patch": 4}}


@pytest.mark.parametrize(
    ("settings", "count"), [(PATCHES, 10), ({"images": {"resize": 2}}, 5), ({"identity": None}, 5)], ids=str
)
def test_packs_hold_the_rows_of_single_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], count: int
) -> None:
    rows = []
    for size, number in ((1, 5), (500, 2)):
        monkeypatch.setattr(batch, "_BATCH_FILES", size)
        shop = shop_of_five_images(tmp_path / str(size), **settings)
        ingested = shop.ingest()
        rows.append(pl.concat([shop.raw(ingested, day) for day in (FIRST, SECOND)]))
        assert len(copies(shop)) == number
    assert rows[0].equals(rows[1])
    assert rows[0].height == count


def test_the_image_that_landed_last_wins(tmp_path: Path) -> None:
    shop = album(tmp_path, identity=["part", "time"])
    shop.land(f"x/a_{FIRST}.png", png(1), at=300)
    shop.land(f"y/a_{FIRST}.png", png(2), at=100)
    shop.land(f"z/b_{FIRST}.png", png(3), at=200)
    assert values(shop) == {f"x/a_{FIRST}.png": {1}, f"z/b_{FIRST}.png": {3}}
    assert list(copies(shop).values()) == [3]


def test_an_image_that_moves_to_another_day_leaves_the_first(tmp_path: Path) -> None:
    shop = album(tmp_path, identity=["part"])
    shop.land(f"a_{FIRST}.png", png(1), at=300)
    shop.land(f"a_{SECOND}.png", png(2), at=100)
    shop.land(f"b_{FIRST}.png", png(3), at=100)
    shop.land(f"c_{SECOND}.png", png(4), at=100)
    assert shop.ingest().moved == {SECOND: ["a"]}
    assert values(shop) == {f"a_{FIRST}.png": {1}, f"b_{FIRST}.png": {3}, f"c_{SECOND}.png": {4}}


def test_a_withdrawn_row_of_a_pack_moves_no_identity(tmp_path: Path) -> None:
    shop = album(tmp_path, identity=["part"])
    shop.land(f"x_{FIRST}.png", png(1), at=300)
    shop.land(f"x_{SECOND}.png", png(2), at=500)
    change_days(shop.ingest().ledger, [SECOND], shop, who="me", why="wrong")
    shop.land(f"b_{SECOND}.png", png(3), at=400)
    expected = {f"x_{FIRST}.png": {1}, f"b_{SECOND}.png": {3}}
    assert values(shop) == expected
    shop.edit_contract("file: {type: text}", "file: {type: text, required: true}")
    ingested = shop.ingest()  # reads all files again, so that the withdrawn row is in the pack of the second day
    assert (sorted(copies(shop).values()), ingested.moved) == ([1, 2], {})
    assert values(shop) == expected


def test_no_pixels_stay_of_images_that_landed_again_or_left(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path)
    shop.rows("file")
    shop.land(FILES[3], png(9))
    assert shop.ingest().pending_days(shop) == [SECOND]
    assert values(shop) == {name: {9 if name == FILES[3] else value} for value, name in enumerate(FILES, start=1)}
    assert sorted(copies(shop).values()) == [1, 2, 2]
    shop.paths.contract.write_text(shop.paths.contract.read_text() + "on_delete: withdraw\n")
    for name in (FILES[0], FILES[3]):
        (shop.paths.landing / name).unlink()
    shop.ingest_accepted()
    assert values(shop) == {FILES[1]: {2}, FILES[2]: {3}, FILES[4]: {5}}
    assert sorted(copies(shop).values()) == [1, 2]


def test_earlier_versions_refuse_a_ledger_with_packs(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path)
    shop.land(f"a_{THIRD}.png", png(6))  # the only one of its day, with a copy of its own
    files = shop.ingest().ledger.files
    written = json.loads(shop.paths.ledger.read_text())
    fields = set(vars(files[FILES[0]]))
    assert {name: set(written[name]) - fields for name in files} == {
        **{name: {"packed"} for name in FILES},
        f"a_{THIRD}.png": set(),
    }
    written.pop("sha256")  # an entry that a version without packs wrote
    shop.paths.ledger.write_text(json.dumps({f"a_{THIRD}.png": written[f"a_{THIRD}.png"]}))
    assert Ledger.load(shop.paths.ledger).files == {f"a_{THIRD}.png": files[f"a_{THIRD}.png"]}


def test_a_ledger_has_one_line_for_each_file_and_one_for_the_digest(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path)
    ledger = shop.ingest().ledger
    first, *lines, digest, last = shop.paths.ledger.read_text().splitlines()
    assert (first, last) == ("{", "}")
    assert [next(iter(json.loads(f"{{{line.rstrip(',')}}}"))) for line in lines] == list(ledger.files)
    entries = json.loads(shop.paths.ledger.read_text())
    del entries["sha256"]
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    assert json.loads(f"{{{digest}}}") == {"sha256": hashlib.sha256(text.encode()).hexdigest()[:32]}
    assert Ledger.load(shop.paths.ledger) == ledger


def test_a_lost_ledger_is_rebuilt_from_packs(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path)
    expected = shop.ingest().ledger
    shop.paths.ledger.write_text("{")
    (problem,) = ledger_problems(shop)
    problem.repair()
    assert Ledger.load(shop.paths.ledger) == expected


def test_a_rebuilt_ledger_has_packs_without_rows_of_other_files(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path)
    shop.ingest()
    before = tmp_path / "before"
    shutil.copytree(shop.paths.staged("_").parent, before)
    shop.land(FILES[3], png(9))
    shop.ingest()
    for copy in before.iterdir():  # as a run leaves them that is killed before it deletes them
        shutil.copy2(copy, shop.paths.staged(copy.stem))
    shop.paths.ledger.write_text("{")
    (problem,) = ledger_problems(shop)
    problem.repair()
    assert values(shop) == {name: {9 if name == FILES[3] else value} for value, name in enumerate(FILES, start=1)}
    assert sorted(copies(shop).values()) == [1, 2, 2]


def test_images_of_a_damaged_pack_are_read_again_or_recovered(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path)
    expected = values(shop)
    pack = shop.paths.staged(str(shop.entry(FILES[1]).staged))
    pack.write_bytes(b"nothing")
    for name in (FILES[1], FILES[3]):
        (shop.paths.landing / name).unlink()
    ledger = Ledger.load(shop.paths.ledger)
    with pytest.raises(StorageError, match=r"the staged copy of .* is damaged"):
        shop.raw(shop.ingest(), SECOND)
    for problem in ledger_problems(shop):
        problem.repair()
    assert list(ledger_problems(shop)) == []
    assert values(shop) == expected
    assert Ledger.load(shop.paths.ledger).files.keys() == ledger.files.keys()


def test_images_of_a_pack_that_left_are_recovered_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = shop_of_five_images(tmp_path, max_removed_share=1.0)
    expected = values(shop)
    shop.paths.staged(str(shop.entry(FILES[1]).staged)).unlink()
    for name in (FILES[1], FILES[3]):
        (shop.paths.landing / name).unlink()
    calls: Counter[str] = Counter()
    for owner, function in ((landed, "list_landing"), (pl, "read_parquet"), (Ledger, "save")):
        monkeypatch.setattr(owner, function, counted(calls, function, getattr(owner, function)))
    left, there = ledger_problems(shop)
    assert left.remedy == f"take their rows from raw_data, because {FILES[1]}, {FILES[3]} have left the landing folder"
    assert there.remedy == f"the next run reads {FILES[4]} again"
    left.repair()
    assert calls == {"list_landing": 1, "read_parquet": 1, "save": 1}
    assert values(shop) == expected


def counted(calls: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that counts its calls."""

    def call(*args: Any, **options: Any) -> Any:
        calls[name] += 1
        return function(*args, **options)

    return call


def test_a_recovered_image_has_the_rows_that_were_found(tmp_path: Path) -> None:
    shop = shop_of_five_images(tmp_path, identity=["part"])
    shop.land(f"z_{THIRD}.png", png(6))
    shop.rows("file")
    shop.paths.staged(str(shop.entry(f"z_{THIRD}.png").staged)).unlink()
    for lost in (shop.paths.landing / f"z_{THIRD}.png", shop.paths.raw(THIRD)):
        lost.unlink()
    (problem,) = ledger_problems(shop)
    assert f"the rows on {THIRD} are lost" in problem.remedy
    problem.repair()
    assert (shop.entry(f"z_{THIRD}.png").rows, shop.entry(f"z_{THIRD}.png").days) == (0, {})
    shop.land(f"d_{SECOND}.png", png(7))
    assert values(shop) == {FILES[1]: {2}, FILES[3]: {4}, FILES[4]: {5}, f"d_{SECOND}.png": {7}}
