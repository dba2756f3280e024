"""What sensors and runs do when an object store is slow or does not answer."""

import pytest

from ae_pipeline.common.errors import SchemaError, UnavailableError
from ae_pipeline.orchestration import resources
from ae_pipeline.orchestration.resources import RunLock, Workspace
from ae_pipeline.orchestration.sensors import _subject


def test_an_outage_is_one_alert_a_day() -> None:
    subjects = {_subject(UnavailableError(f"error sending request in {seconds}s")) for seconds in (0.1, 0.2)}
    assert len(subjects) == 1
    assert subjects.pop().startswith("UnavailableError 2")
    assert _subject(SchemaError("column 'a' is missing")) == "column 'a' is missing"


def test_locks_are_checked_after_all_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[str]()
    monkeypatch.setattr(Workspace, "save", lambda _, dataset: steps.append(f"save {dataset}"))

    class Locks:
        def require(self, name: str) -> None:
            steps.append(f"require {name}")

    monkeypatch.setattr(resources, "locks", Locks)
    monkeypatch.setattr(resources, "dataset_lock", lambda paths: paths.dataset)
    lock = RunLock(workspace=Workspace(data_folder="data", mlflow_folder="mlruns"))
    lock._datasets = ("orders", "shops")
    lock.require_active()
    assert steps == ["save orders", "save shops", "require orders", "require shops"]
