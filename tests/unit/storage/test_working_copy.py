"""Working copies of several hosts follow one snapshot in an object store."""

import json
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from obstore.exceptions import GenericError
from starlette.testclient import TestClient

from ae_pipeline.cli.data_files import data_app
from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.storage import object_store
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.jsonl import add_line, read_lines
from ae_pipeline.storage.object_store import ObjectStore
from ae_pipeline.storage.session import forget_state, hold_dataset, recording, refresh, save
from ae_pipeline.storage.working_copy import WorkingCopy
from tests.unit.storage.conftest import ADDRESS, ENTRY, Bucket, Host

Hosts = Callable[[str], Host]


def test_another_host_gets_the_same_files_with_their_times(host: Hosts) -> None:
    one, other = host("one"), host("other")
    with hold_dataset(one.paths):
        raw = one.write("raw/orders/2024-01-01.parquet", "rows")
        one.write("history/orders.jsonl", "{}\n")
        one.write("contracts/orders.yaml", "columns: {}\n")
        for local in ("cache/x", "staging/orders/whole/copies.bin", "raw/orders/.x.parquet.1.0a1b2c3d.tmp", "raw/b/x"):
            one.write(local, "only here")
        os.utime(raw, ns=(1, 1_700_000_000_123_456_789))
    refresh(other.paths)
    assert other.files == {
        "raw/orders/2024-01-01.parquet": "rows",
        "history/orders.jsonl": "{}\n",
        "contracts/orders.yaml": "columns: {}\n",
    }
    assert other.paths.raw("2024-01-01").stat().st_mtime_ns == 1_700_000_000_123_456_789


def test_a_killed_session_leaves_the_last_snapshot(host: Hosts) -> None:
    one = host("one")
    with hold_dataset(one.paths):
        one.write("raw/orders/a.parquet", "old")
        save(one.paths)
    one.write("raw/orders/a.parquet", "half")  # as a killed run leaves it
    one.write("raw/orders/b.parquet", "new")
    refresh(one.paths)
    assert one.files == {"raw/orders/a.parquet": "old"}


def test_a_failed_session_saves_what_it_did(host: Hosts) -> None:
    one, other = host("one"), host("other")

    def fail() -> None:
        with hold_dataset(one.paths):
            one.write("history/orders.alerts.jsonl", "{}\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    refresh(other.paths)
    assert other.files == {"history/orders.alerts.jsonl": "{}\n"}


def test_deleted_files_are_deleted_on_all_hosts(host: Hosts, bucket: Bucket) -> None:
    one, other = host("one"), host("other")
    with hold_dataset(one.paths):
        one.write("reports/orders/report.html", "x")
        one.write("contracts/orders.yaml", "x")
    refresh(other.paths)
    with hold_dataset(one.paths):
        for name in ("reports/orders/report.html", "contracts/orders.yaml"):
            (one.paths.root / name).unlink()
    refresh(other.paths)
    assert other.files == {}
    assert bucket.names == set()


def test_a_session_within_a_session_saves_at_its_end(host: Hosts) -> None:
    one, other = host("one"), host("other")
    with hold_dataset(one.paths):
        with hold_dataset(one.paths):
            one.write("raw/orders/a.parquet", "x")
        refresh(other.paths)
        assert other.files == {"raw/orders/a.parquet": "x"}
        one.write("raw/orders/b.parquet", "y")
        refresh(one.paths)  # a sensor of the same machine leaves the files of a run alone
        assert len(one.files) == 2


def test_hosts_that_change_different_files_at_once_lose_none(host: Hosts) -> None:
    one, other, third = host("one"), host("other"), host("third")
    for each in (one, other):
        each.copy.update()
        each.write(f"raw/orders/{each.paths.root.name}.parquet", "rows")
    one.copy.push()
    other.copy.push()
    third.copy.update()
    assert third.files.keys() == {"raw/orders/one.parquet", "raw/orders/other.parquet"}
    assert third.files == other.files


def test_ledgers_and_lines_of_two_hosts_are_merged(host: Hosts) -> None:
    first, one, other = host("first"), host("one"), host("other")
    Ledger({"old": ENTRY, "gone": ENTRY}).save(first.paths.ledger)
    add_line(first.paths.alerts, {"key": "old"})
    first.copy.push()
    for each in (one, other):
        each.copy.update()
        add_line(each.paths.alerts, {"key": each.paths.root.name})
    Ledger({"old": ENTRY, "one": ENTRY, "gone": ENTRY}).save(one.paths.ledger)
    Ledger({"old": ENTRY, "other": ENTRY}).save(other.paths.ledger)
    one.copy.push()
    other.copy.push()
    one.copy.update()
    assert one.files == other.files
    assert Ledger.load(one.paths.ledger).files.keys() == {"old", "one", "other"}
    lines, damaged = read_lines(one.paths.alerts)
    assert ([line["key"] for line in lines], damaged) == (["old", "one", "other"], [])


@pytest.mark.parametrize("name", ["history/orders.place", "staging/orders/ledger.json", "contracts/orders.yaml"])
def test_what_cannot_be_merged_is_an_error(host: Hosts, name: str) -> None:
    one, other = host("one"), host("other")
    for each in (one, other):
        each.copy.update()
        each.write(name, json.dumps({"a.csv": {"sha256": each.paths.root.name}}))
    one.copy.push()
    with pytest.raises(StorageError, match=r"at the same time.*; run again"):
        other.copy.push()
    other.copy.update()
    assert other.files == one.files


def test_of_files_that_can_be_built_again_one_stands(host: Hosts) -> None:
    one, other = host("one"), host("other")
    for each in (one, other):
        each.copy.update()
        each.write("raw/orders/a.parquet", each.paths.root.name)
    one.copy.push()
    other.copy.push()
    assert other.files == {"raw/orders/a.parquet": "one"}


def test_a_host_that_always_loses_gives_up(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    one = host("one")
    one.copy.update()
    one.write("raw/orders/a.parquet", "x")
    tries = list[str]()
    monkeypatch.setattr(ObjectStore, "replace", lambda *arguments: tries.append(arguments[1]))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(StorageError, match="changed by others 128 times in a row; run again, and let all hosts use"):
        one.copy.push()
    assert tries == ["state/orders/head.json"] * 128


def test_lines_are_saved_at_once_while_another_host_works(host: Hosts) -> None:
    one, other, third = host("one"), host("other"), host("third")
    with hold_dataset(one.paths):
        one.write("raw/orders/a.parquet", "x")
        add_line(one.paths.alerts, {"key": "one"})
        refresh(other.paths)
        with recording(other.paths, other.paths.alerts) as save_lines:
            add_line(other.paths.alerts, {"key": "other"})
            save_lines()
        refresh(third.paths)
        assert [line["key"] for line in read_lines(third.paths.alerts)[0]] == ["other"]
        with recording(one.paths, one.paths.alerts) as save_lines:
            add_line(one.paths.alerts, {"key": "one again"})
            save_lines()  # with the rest, at the end of the session
    refresh(third.paths)
    assert [line["key"] for line in read_lines(third.paths.alerts)[0]] == ["other", "one", "one again"]
    assert third.files == one.files


def test_an_edit_of_the_contract_in_the_store_counts(host: Hosts, bucket: Bucket) -> None:
    one = host("one")
    with hold_dataset(one.paths):
        one.write("contracts/orders.yaml", "inferred")
    assert bucket.read("contracts/orders.yaml") == b"inferred"
    bucket.write("contracts/orders.yaml", b"edited")
    refresh(one.paths)
    assert one.paths.contract.read_text() == "edited"
    one.write("contracts/orders.yaml", "edited here, where nobody looks")
    refresh(one.paths)
    assert one.paths.contract.read_text() == "edited"


def test_reports_have_their_names_in_the_store(host: Hosts, bucket: Bucket) -> None:
    one = host("one")
    with hold_dataset(one.paths):
        for name in (
            "reports/orders/report.html",
            "reports/orders/report.context.json",
            "feedback/orders/marks.parquet",
        ):
            one.write(name, "first")
        one.write("feedback/orders/marks.jsonl", "{}\n")
    assert bucket.names == {"reports/orders/report.html", "feedback/orders/marks.parquet"}
    with hold_dataset(one.paths):
        one.write("reports/orders/report.html", "second")
        one.paths.marks.with_suffix(".parquet").unlink()
    assert bucket.names == {"reports/orders/report.html"}
    assert bucket.read("reports/orders/report.html") == b"second"


def test_unused_blobs_are_deleted_after_a_day(host: Hosts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    one = host("one")
    for text in ("first", "second"):
        with hold_dataset(one.paths):
            one.write("raw/orders/a.parquet", text)
    assert len(ObjectStore(ADDRESS).list("state/orders/blobs")) == 2
    assert one.copy.remove_unused() == 0
    later = time.time() + 90_000
    monkeypatch.setattr(time, "time", lambda: later)
    assert one.copy.remove_unused() == 1
    other = host("other")
    refresh(other.paths)
    assert other.files == {"raw/orders/a.parquet": "second"}
    assert bucket.names == set()


def test_forget_removes_all_versions(host: Hosts, bucket: Bucket) -> None:
    one, other = host("one"), host("other")
    bucket.write("landing/orders/a.csv", b"1")
    with hold_dataset(one.paths):
        one.write("reports/orders/report.html", "x")
        one.write("raw/orders/a.parquet", "x")
    refresh(other.paths)
    with hold_dataset(one.paths):
        for name in ("reports/orders/report.html", "raw/orders/a.parquet"):
            (one.paths.root / name).unlink()
        forget_state(one.paths)
    assert ObjectStore(ADDRESS).list("state") == []
    assert bucket.names == {"landing/orders/a.csv"}
    refresh(other.paths)
    assert other.files == {"landing/orders/a.csv": "1"}


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b'{"format": 2}', "its format is 2, and this version of ae_pipeline reads 1"),
        (b'{"format": 1, "files": {"raw/../../x": ["a", 1, 1]}}', r"it has the path 'raw/\.\./\.\./x'"),
        (b"{", "Expecting"),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_refused(host: Hosts, bucket: Bucket, head: bytes, reason: str) -> None:
    bucket.write("state/orders/head.json", head)
    with pytest.raises(StorageError, match=rf"head\.json cannot be read \({reason}.*\); install a newer version"):
        host("one").copy.update()
    assert host("one").files == {}


def test_a_look_without_news_takes_two_requests_and_a_listing(
    host: Hosts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host("one")
    bucket.write("landing/orders/a.csv", b"1")
    with hold_dataset(one.paths):
        one.write("contracts/orders.yaml", "x")
        one.write("raw/orders/a.parquet", "x")
    requests = list[str]()
    for name in ("read", "list", "download", "write", "replace", "remove"):
        done = getattr(ObjectStore, name)

        def counted(
            store: ObjectStore, *arguments: object, name: str = name, done: Callable[..., object] = done
        ) -> object:
            requests.append(f"{name} {arguments[0]}")
            return done(store, *arguments)

        monkeypatch.setattr(ObjectStore, name, counted)
    WorkingCopy(one.paths).update()
    assert requests == ["read state/orders/head.json", "read contracts/orders.yaml", "list landing/orders"]


@pytest.mark.parametrize(
    ("facts", "condition"),
    [
        ({"e_tag": '"a"', "version": None}, {"e_tag": '"a"'}),
        ({"e_tag": '"a"', "version": "17"}, {"e_tag": '"a"', "version": "17"}),  # Google Cloud compares generations
    ],
)
def test_a_write_has_all_that_tells_versions_apart(facts: dict[str, str | None], condition: dict[str, str]) -> None:
    assert object_store._condition(object_store._token(facts)) == condition
    assert object_store._condition("") == "create"


def test_a_store_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GenericError("error sending request\nDebug source: …")

    monkeypatch.setattr(object_store, "_open", lambda *_: SimpleNamespace(get=fail, list=fail))
    with pytest.raises(
        StorageError, match=r"of s3://bucket/data does not answer as it should \(error sending request\);"
    ):
        ObjectStore(ADDRESS).read("x")


def test_pages_show_what_another_host_has_reported(host: Hosts) -> None:
    one, other = host("one"), host("other")
    config = PipelineConfig.model_validate({"dataset": "orders", "model": {"latent_dim": 2}})
    client = TestClient(data_app(other.paths.root, {"orders": Dataset(config, other.paths)}))
    with hold_dataset(one.paths):
        one.write("reports/orders/report.html", "first")
    assert client.get("/reports/orders/report.html").text == "first"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"package obstore is not installed; run `pip install 'ae-pipeline\[s3\]'`"):
        ObjectStore("s3://other").list("landing")
