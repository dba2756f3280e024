"""An object store that does not answer or has lost content, and marks and alerts that must survive it."""

import os
import time
from collections.abc import Callable
from types import SimpleNamespace

import polars as pl
import pytest
from filelock import Timeout
from obstore.exceptions import GenericError

from ae_pipeline.common.errors import LostFileError, StorageError, UnavailableError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.lifecycle import ingest
from ae_pipeline.lifecycle.doctor.lost import lost_files
from ae_pipeline.monitoring import alerts
from ae_pipeline.monitoring.alerts import Alert, AlertEvent, alerts_of, raise_alert
from ae_pipeline.monitoring.feedback import Mark, MarkKind, MarkState, add_mark, marks_of
from ae_pipeline.monitoring.webhook import PostResult
from ae_pipeline.storage import object_store, session
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.jsonl import add_line
from ae_pipeline.storage.object_store import ObjectStore
from ae_pipeline.storage.reader_copies import ReaderCopies
from ae_pipeline.storage.session import hold_dataset, recording, refresh
from ae_pipeline.storage.snapshot import _merge_lines
from ae_pipeline.storage.working_copy import WorkingCopy
from tests.unit.storage.conftest import ADDRESS, Bucket, Host

Hosts = Callable[[str], Host]


def fail(*_: object, **__: object) -> None:
    raise GenericError(f"error sending request in {time.monotonic_ns()}ns")


DOWN = SimpleNamespace(get=fail, list=fail, put=fail, delete=fail, head=fail)
"""Client of a store that does not answer."""


def mark(subject: str) -> Mark:
    return Mark(
        kind=MarkKind.ROW, subject=subject, state=MarkState.REAL, day="2024-01-01", rows={subject: "2024-01-01"}
    )


def blob_of(bucket: Bucket, content: bytes) -> str:
    """Return the name of the object with a content."""
    names = (f"state/orders/blobs/{each.name}" for each in ObjectStore(ADDRESS).list("state/orders/blobs"))
    return next(name for name in names if bucket.read(name) == content)


def test_no_line_can_be_appended_while_files_follow_the_snapshot(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    one, update, updates = host("one"), WorkingCopy.update, list[str]()

    def checked(copy: WorkingCopy, *, accepts_loss: bool = False) -> None:
        with pytest.raises(Timeout), session._file_lock(one.paths, "save", timeout=0):
            pass
        updates.append("update")
        update(copy, accepts_loss=accepts_loss)

    monkeypatch.setattr(WorkingCopy, "update", checked)
    refresh(one.paths)
    with hold_dataset(one.paths):
        pass
    assert len(updates) == 2


def test_an_alert_is_posted_while_the_store_is_down_and_stored_later(
    host: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other, posted = host("one"), host("other"), list[str]()
    values = {"dataset": "orders", "model": {"latent_dim": 2}, "alerts": {"webhook": "HOOK"}}
    dataset = Dataset(PipelineConfig.model_validate(values), one.paths)

    def post(alert: Alert, *_: object) -> PostResult:
        posted.append(alert.message)
        return PostResult(True)

    monkeypatch.setattr(alerts, "post", post)
    with hold_dataset(one.paths):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(object_store, "_open", lambda *_: DOWN)
        alert = Alert(event=AlertEvent.RUN_FAILED, key="sensor", message="the store is down")
        assert [raise_alert(alert, dataset) for _ in range(2)] == [True, False]
    assert posted == ["the store is down"]
    assert "an alert of 'orders' is not in the object store yet" in caplog.text
    for each in (one, other):
        refresh(each.paths)
        assert [(stored.message, stored.delivered) for stored in alerts_of(each.paths)] == [("the store is down", True)]


def test_files_of_a_query_that_is_interrupted_are_saved(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = list[str]()
    config = SimpleNamespace(source=SimpleNamespace(is_fetched=True))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "fetch", interrupted)
    monkeypatch.setattr(ingest, "save_landed", lambda paths: saved.append(paths.dataset))
    with pytest.raises(KeyboardInterrupt):
        ingest._fetch_and_ingest(Dataset(config, host("one").paths), accepts_removal=False)  # type: ignore[arg-type]
    assert saved == ["orders"]


def test_lines_of_a_forgotten_dataset_are_dropped(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = host("one"), host("other")
    with hold_dataset(one.paths):
        add_line(one.paths.alerts, {"key": "old"})
    with monkeypatch.context() as patch, recording(one.paths, one.paths.alerts) as save_lines:
        patch.setattr(object_store, "_open", lambda *_: DOWN)
        add_line(one.paths.alerts, {"key": "new"})
        with pytest.raises(UnavailableError):
            save_lines()
    with hold_dataset(other.paths):
        other.paths.alerts.unlink()
        session.forget_state(other.paths)
    refresh(one.paths)
    assert one.files == {}
    refresh(one.paths)


def test_pages_do_not_wait_again_for_a_store_that_has_just_failed(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    one = host("one")
    monkeypatch.setattr(object_store, "_open", lambda *_: DOWN)
    with pytest.raises(StorageError):
        refresh(one.paths, max_age=2.0)
    refresh(one.paths, max_age=2.0)  # shows what is there
    with pytest.raises(StorageError):
        refresh(one.paths)  # a sensor or a command asks again
    later = time.monotonic() + 40
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(StorageError):
        refresh(one.paths, max_age=2.0)


def test_only_content_may_take_long(host: Hosts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    one, opened = host("one"), list[bool]()
    bucket.write("contracts/orders.yaml", b"x")

    def opening(_: str, is_quick: bool) -> object:
        opened.append(is_quick)
        return bucket.client

    monkeypatch.setattr(object_store, "_open", opening)
    refresh(one.paths)
    assert opened == [True, True, True]  # head, contract and listing
    bucket.write("landing/orders/a.csv", b"1")
    refresh(one.paths)
    assert opened[3:] == [True, True, True, False]


def test_a_forked_process_gets_an_error_instead_of_no_answer(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(ADDRESS)
    assert store.read("x") is None
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(StorageError, match=r"was forked from one that uses s3://bucket/data.*start it by `spawn`"):
        store.read("x")
    assert bucket.names == set()


@pytest.mark.parametrize("content", [b"other", None])  # damaged, and missing
def test_lost_content_that_is_built_again_is_left_out(
    host: Hosts, bucket: Bucket, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    one, other, third = host("one"), host("other"), host("third")
    with hold_dataset(one.paths):
        one.write("raw/orders/a.parquet", "rows")
        one.write("staging/orders/ledger.json", "{}")
    name = blob_of(bucket, b"rows")
    bucket.write(name, content) if content else bucket.client.delete(name)
    refresh(other.paths)
    assert other.files == {"staging/orders/ledger.json": "{}"}
    assert f"{ADDRESS}/{name} is {'damaged' if content else 'missing'}, the content of raw/orders/a.par" in caplog.text
    with hold_dataset(other.paths):
        other.write("raw/orders/a.parquet", "rows")
    refresh(third.paths)
    assert third.files == other.files == {"raw/orders/a.parquet": "rows", "staging/orders/ledger.json": "{}"}


def test_lost_content_that_nobody_can_build_is_left_out_on_demand(host: Hosts, bucket: Bucket) -> None:
    one, other, third = host("one"), host("other"), host("third")
    with hold_dataset(one.paths):
        ledger = one.write("staging/orders/ledger.json", "{}")
        one.write("history/orders.jsonl", "{}\n")
    bucket.client.delete(blob_of(bucket, ledger.read_bytes()))
    other.write("staging/orders/ledger.json", "{ }")  # an older one
    with pytest.raises(
        LostFileError, match=r"is missing, the content of staging/orders/ledger.json; restore it, or go"
    ):
        refresh(other.paths)
    (problem,) = lost_files(other.paths)
    assert "`ae-pipeline doctor orders --repair`" in problem.message
    with hold_dataset(other.paths, accepts_loss=True):
        pass
    assert list(lost_files(third.paths)) == []
    assert third.files == {"staging/orders/ledger.json": "{ }", "history/orders.jsonl": "{}\n"}


def test_the_table_of_marks_has_the_marks_of_all_hosts_at_once(host: Hosts, bucket: Bucket) -> None:
    one, other = host("one"), host("other")
    with hold_dataset(one.paths):
        refresh(other.paths)
        add_mark(mark("one"), one.paths)
        add_mark(mark("other"), other.paths)
        assert bucket.names == {"feedback/orders/marks.parquet"}
        assert pl.read_parquet(bucket.read("feedback/orders/marks.parquet"))["subject"].to_list() == ["other"]
    refresh(other.paths)
    assert [each.subject for each in marks_of(other.paths)] == ["other", "one"]
    table = other.paths.marks.with_suffix(".parquet").read_bytes()
    assert pl.read_parquet(table)["subject"].to_list() == ["other", "one"]
    assert bucket.read("feedback/orders/marks.parquet") == table
    add_mark(mark("third"), one.paths)  # with a copy that is older than the snapshot
    refresh(other.paths)
    table = bucket.read("feedback/orders/marks.parquet")
    assert pl.read_parquet(table)["row_ids"].to_list() == [["other"], ["one"], ["third"]]


def test_a_session_publishes_what_a_killed_one_did_not(
    host: Hosts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, reads, read = host("one"), list[str](), ObjectStore.read

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def change() -> None:
        with hold_dataset(one.paths):
            one.write("reports/orders/report.html", "new")

    with monkeypatch.context() as patch:
        patch.setattr(ReaderCopies, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            change()
    assert bucket.names == set()
    with hold_dataset(one.paths):
        pass
    assert bucket.read("reports/orders/report.html") == b"new"

    def counted(store: ObjectStore, name: str, known: str = "", *, is_content: bool = False) -> object:
        reads.append(name)
        return read(store, name, known, is_content=is_content)

    monkeypatch.setattr(ObjectStore, "read", counted)
    with hold_dataset(one.paths):
        pass
    assert reads == ["state/orders/head.json", "contracts/orders.yaml"]


def test_long_logs_are_merged_in_linear_time() -> None:
    lines = [b'{"i": %d}\n' % number for number in range(20_000)]
    base, start = b"".join(lines), time.process_time()
    assert _merge_lines(base, base + b"{1}\n", base + b"{2}\n") == base + b"{1}\n{2}\n"
    assert time.process_time() - start < 2
