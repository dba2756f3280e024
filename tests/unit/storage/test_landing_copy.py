"""Landed files of an object store and of a working copy of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.lifecycle.forget import landed_part
from ae_pipeline.storage import landing_copy
from ae_pipeline.storage.landing_copy import LandingCopy
from ae_pipeline.storage.object_store import ListedObject, ObjectStore
from ae_pipeline.storage.session import hold_dataset, load_landed, refresh, save_landed
from tests.unit.storage.conftest import ADDRESS, ENTRY, Bucket, Host

Hosts = Callable[[str], Host]

LONG = f"{'ä' * 150}.csv"
"""A name that no disk can hold."""


def test_landed_objects_are_copied_once(
    host: Hosts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = host("one")
    for name, data in (
        ("a.csv", b"1"),
        ("2024/b.csv", b"22"),
        ("2024", b""),
        ("x", b"3"),
        ("x/c.csv", b"4"),
        (LONG, b"5"),
    ):
        bucket.write(f"landing/orders/{name}", data)
    loads, download = list[str](), ObjectStore.download

    def counted(store: ObjectStore, name: str, target: Path) -> tuple[str, ListedObject] | None:
        loads.append(name)
        return download(store, name, target)

    monkeypatch.setattr(ObjectStore, "download", counted)
    landing = LandingCopy(one.paths, ObjectStore(ADDRESS))
    for _ in range(2):
        landing.update()
    assert sorted(loads) == [f"landing/orders/{name}" for name in ("2024/b.csv", "a.csv", "x/c.csv")]
    assert (
        f"2 objects below {ADDRESS}/landing/orders cannot be a file of a folder and are not read: x, {LONG};"
        in caplog.text
    )
    state = one.paths.landing.joinpath("a.csv").stat()
    bucket.write("landing/orders/a.csv", b"9")  # within the same second, and of the same size
    landing.update()
    assert one.paths.landing.joinpath("a.csv").read_text() == "9"
    assert one.paths.landing.joinpath("a.csv").stat().st_mtime_ns != state.st_mtime_ns
    bucket.client.delete("landing/orders/a.csv")
    landing.update()
    assert not one.paths.landing.joinpath("a.csv").exists()


def test_files_that_the_ledger_has_are_copied_when_they_are_read(host: Hosts, bucket: Bucket) -> None:
    one, other = host("one"), host("other")
    for name in ("a.csv", "b.csv", "c.json", "later.csv"):
        bucket.write(f"landing/orders/{name}", name.encode())
    with hold_dataset(one.paths):
        stats = {name: (one.paths.landing / name).stat() for name in ("a.csv", "b.csv", "c.json")}
        entries = {
            name: replace(ENTRY, size=stat.st_size, modified_ns=stat.st_mtime_ns) for name, stat in stats.items()
        }
        Ledger(entries).save(one.paths.ledger)
    landing = other.paths.landing
    with hold_dataset(other.paths):
        assert {name: (landing / name).read_bytes() for name in (*stats, "later.csv")} == {
            "a.csv": bytes(5),
            "b.csv": bytes(5),
            "c.json": b"c.json",
            "later.csv": b"later.csv",
        }
        assert {name: (landing / name).stat().st_mtime_ns for name in stats} == {
            name: stat.st_mtime_ns for name, stat in stats.items()
        }
        load_landed(other.paths, [landing / "a.csv", landing / "c.json", other.paths.contract])
        assert (landing / "a.csv").read_bytes() == b"a.csv"
    (other.paths.root / ".store" / "orders.landing.json").unlink()  # nobody knows which files are hollow
    other.paths.ledger.unlink()
    LandingCopy(other.paths, ObjectStore(ADDRESS)).update()
    assert (landing / "b.csv").read_bytes() == b"b.csv"
    assert {name: bucket.read(f"landing/orders/{name}") for name in stats} == {name: name.encode() for name in stats}


def objects(bucket: Bucket) -> dict[str, bytes]:
    """Return the content of each landed object."""
    return {name.removeprefix("landing/orders/"): bucket.read(name) for name in sorted(bucket.names)}


def test_new_files_of_the_copy_become_objects_and_edits_do_not(
    host: Hosts, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    one = host("one")
    for name in ("edited.csv", "in both.csv", "cleaned.csv"):
        bucket.write(f"landing/orders/{name}", b"old")
    refresh(one.paths)
    for name in ("new.csv", "edited.csv", "in both.csv"):
        one.write(f"landing/orders/{name}", "here")
    bucket.write("landing/orders/in both.csv", b"there")
    refresh(one.paths)  # a sensor sees the file before a run copies it
    assert (one.paths.landing / "new.csv").read_text() == "here"
    assert "edited.csv was written here, and is in the store; the object replaces it" in caplog.text
    with hold_dataset(one.paths):
        (one.paths.landing / "cleaned.csv").unlink()  # by a program that cleans caches
        one.write("landing/orders/edited.csv", "here again")
    assert objects(bucket) == {"cleaned.csv": b"old", "edited.csv": b"old", "in both.csv": b"there", "new.csv": b"here"}
    refresh(one.paths)
    assert {path.name: path.read_bytes() for path in one.paths.landing.iterdir()} == objects(bucket)


@pytest.mark.parametrize("most_at_once", [1 << 20, 0])  # in one request, and in parts
def test_a_query_replaces_its_own_objects_only(
    host: Hosts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most_at_once: int
) -> None:
    monkeypatch.setattr(landing_copy, "_MOST_AT_ONCE", most_at_once)
    one, other = host("one"), host("other")
    for name in ("a.csv", "b.csv"):
        bucket.write(f"landing/orders/{name}", b"old")
    with hold_dataset(one.paths):
        paths = [one.write(f"landing/orders/{name}", "fetched") for name in ("a.csv", "b.csv", "c.csv", "d.csv")]
        for name in ("b.csv", "c.csv"):
            bucket.write(f"landing/orders/{name}", b"by the producer")
        save_landed(one.paths)
    expected = {"a.csv": b"fetched", "b.csv": b"by the producer", "c.csv": b"by the producer", "d.csv": b"fetched"}
    assert objects(bucket) == expected
    assert caplog.text.count("another program has written landing/orders/") == 2
    for each in (one, other):
        refresh(each.paths)
    assert {path.name: path.read_bytes() for path in one.paths.landing.iterdir()} == expected
    times = [(other.paths.landing / path.name).stat().st_mtime_ns for path in paths]
    assert times == [path.stat().st_mtime_ns for path in paths]


def test_an_object_that_is_gone_while_it_is_read_is_no_file(
    host: Hosts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, download = host("one"), ObjectStore.download
    for name in ("a.csv", "b.csv"):
        bucket.write(f"landing/orders/{name}", b"1")
    refresh(one.paths)

    def deleted(store: ObjectStore, name: str, target: Path) -> tuple[str, ListedObject] | None:
        bucket.client.delete(name)
        return download(store, name, target)

    bucket.write("landing/orders/a.csv", b"2")
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "download", deleted)
        refresh(one.paths)
    assert [path.name for path in one.paths.landing.iterdir()] == ["b.csv"]
    with hold_dataset(one.paths):
        bucket.write("landing/orders/a.csv", b"3")  # as a producer replaces an object
    refresh(one.paths)
    assert objects(bucket) == {"a.csv": b"3", "b.csv": b"1"}
    assert (one.paths.landing / "a.csv").read_bytes() == b"3"


@pytest.mark.parametrize(("data", "reason"), [(None, "deleted"), (b"2", "replaced")])
def test_a_file_whose_object_changed_is_not_read_as_empty(
    host: Hosts, bucket: Bucket, data: bytes | None, reason: str
) -> None:
    one, other = host("one"), host("other")
    bucket.write("landing/orders/a.csv", b"1")
    with hold_dataset(one.paths):
        stat = (one.paths.landing / "a.csv").stat()
        entry = replace(ENTRY, size=stat.st_size, modified_ns=stat.st_mtime_ns)
        Ledger({"a.csv": entry}).save(one.paths.ledger)
    file = other.paths.landing / "a.csv"
    with hold_dataset(other.paths):
        assert file.read_bytes() == b"\0"
        bucket.client.delete("landing/orders/a.csv")
        if data:
            bucket.write("landing/orders/a.csv", data)
        with pytest.raises(StorageError, match=f"landing/orders/a.csv was {reason} before it was read; run again"):
            load_landed(other.paths, [file])
        assert (file.read_bytes() if file.exists() else None) == data
    refresh(other.paths)
    assert objects(bucket) == ({"a.csv": data} if data else {})
    assert file.exists() == (data is not None)


def test_landed_files_are_forgotten_by_name(host: Hosts, bucket: Bucket) -> None:
    one = host("one")
    bucket.write("landing/orders/a.csv", b"1")
    with hold_dataset(one.paths):
        bucket.write("landing/orders/later.csv", b"2")  # nobody agreed to delete this one
        part = landed_part(one.paths, None)
        assert part
        part.remove()
        assert not one.paths.landing.exists()
    assert objects(bucket) == {"later.csv": b"2"}
