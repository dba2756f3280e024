"""A look at an unchanged landing folder is quick, and each change is seen."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.lifecycle import landing_look
from ae_pipeline.lifecycle.landing_look import look_at_landing
from ae_pipeline.lifecycle.plan import Plan, plan_landing
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

OLD = time.time() - 3600


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A dataset with two landed files, in a folder and below it, that are an hour old."""
    config = PipelineConfig.model_validate({"dataset": "orders", "identity": ["id"]})
    dataset = Dataset(config, DatasetPaths(tmp_path, "orders"))
    for name in ("a.csv", "more/b.csv"):
        _land(dataset.paths.landing / name, "id,x\n1,2\n")
    for folder in (dataset.paths.landing, dataset.paths.landing / "more"):
        os.utime(folder, (OLD, OLD))
    return dataset


def _land(path: Path, text: str, at: float = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (at, at))


@pytest.fixture
def full_looks(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of full looks. Each finds nothing to do."""
    plans: list[Plan] = []

    def idle(*_: object) -> Plan:
        plans.append(Plan((), f"look {len(plans) + 1}"))
        return plans[-1]

    monkeypatch.setattr(landing_look, "plan_landing", idle)
    return plans


CHANGES: dict[str, Callable[[DatasetPaths], None]] = {
    "a new file": lambda paths: _land(paths.landing / "c.csv", "id,x\n"),
    "a file of the same size": lambda paths: _land(paths.landing / "more" / "b.csv", "id,x\n1,3\n", OLD + 1),
    "a deleted file": lambda paths: (paths.landing / "a.csv").unlink(),
    "a schema contract": lambda paths: _land(paths.contract, "columns: {}\n"),
    "a ledger": lambda paths: _land(paths.ledger, "{}"),
    "a staged copy": lambda paths: _land(paths.staged("a"), ""),
    "a raw day": lambda paths: _land(paths.raw("all"), ""),
    "features": lambda paths: _land(paths.features("all"), ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_a_change_causes_a_full_look(change: str, dataset: Dataset, full_looks: list[Plan]) -> None:
    today = dataset.config.today()
    assert [look_at_landing(dataset, today, 3.0).idle for _ in range(3)] == ["look 1"] * 3
    CHANGES[change](dataset.paths)
    assert look_at_landing(dataset, today, 3.0).idle == "look 2"
    assert len(full_looks) == 2


def test_a_file_that_was_just_written_is_looked_at_again(dataset: Dataset, full_looks: list[Plan]) -> None:
    _land(dataset.paths.landing / "a.csv", "id,x\n1,2\n", time.time())
    for expected in ("look 1", "look 2"):
        assert look_at_landing(dataset, dataset.config.today(), 3.0).idle == expected
    assert len(full_looks) == 2


def test_a_file_of_the_future_counts_from_its_last_change(dataset: Dataset) -> None:
    for name in ("a.csv", "more/b.csv"):
        _land(dataset.paths.landing / name, "id,x\n1,2\n", time.time() + 32_400)
    today = dataset.config.today()
    assert look_at_landing(dataset, today, 30.0).idle == "2 new or changed files, still being written"
    assert [work.step for work in look_at_landing(dataset, today, -1.0).work] == ["intake"]


def test_everything_is_looked_at_from_time_to_time(
    dataset: Dataset, full_looks: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing_look, "_FULL_LOOK_SECONDS", 0.0)
    assert [look_at_landing(dataset, dataset.config.today(), 3.0).idle for _ in range(2)] == ["look 1", "look 2"]
    assert len(full_looks) == 2


def test_work_is_planned_at_each_look(dataset: Dataset) -> None:
    plans = [look_at_landing(dataset, dataset.config.today(), 3.0) for _ in range(2)]
    assert plans == [plan_landing(dataset, dataset.config.today(), 3.0)] * 2
    assert [work.step for work in plans[0].work] == ["intake"]


@pytest.mark.parametrize(
    ("name", "idle"), [("c.csv", "1 new or changed file, still being written"), (".c.csv.part", "look 1")]
)
def test_a_file_that_is_being_written_causes_no_full_look(
    name: str, idle: str, dataset: Dataset, full_looks: list[Plan]
) -> None:
    today = dataset.config.today()
    look_at_landing(dataset, today, 3.0)
    _land(dataset.paths.landing / name, "id,x\n", time.time())
    assert [look_at_landing(dataset, today, 3.0).idle for _ in range(2)] == [idle, idle]
    assert len(full_looks) == 1
    os.utime(dataset.paths.landing / name, (OLD, OLD))
    look_at_landing(dataset, today, 3.0)
    assert len(full_looks) == (2 if name == "c.csv" else 1)
