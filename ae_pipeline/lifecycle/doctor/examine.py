"""Examine a dataset part by part, and repair it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.lifecycle.doctor.dagster_home import dagster_problems
from ae_pipeline.lifecycle.doctor.landed import contract_problems, day_problems, ledger_problems, scratch_problems
from ae_pipeline.lifecycle.doctor.problem import Problem
from ae_pipeline.lifecycle.doctor.served import (
    history_problems,
    readable,
    report_problems,
    store_problems,
    table_problems,
    version_problems,
)
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset


@dataclass(frozen=True)
class Examination:
    """Result of an examination.

    Attributes:
        problems: What is wrong.
        repaired: Whether every problem was repaired, or is left to the next run, which repairs it.
    """

    problems: tuple[Problem, ...]
    repaired: bool


def examine(
    dataset: Dataset,
    tracker: Tracker,
    home: Path,
    on_problem: Callable[[Problem], None] = lambda _: None,
    *,
    repair: bool = False,
) -> Examination:
    """Check the whole state of a dataset. Each part is repaired before the next one is checked.

    Args:
        dataset: Dataset to check. For a repair, the caller holds its lock.
        tracker: The model store.
        home: Folder of Dagster's instance.
        on_problem: Called with each problem.
        repair: Whether to repair.

    Returns:
        The problems. Without a repair, those that another problem hides are not among them.
    """
    problems: list[Problem] = []
    repaired = repair
    for part in _parts(dataset, tracker, home):
        for problem in list(part()):
            if problem.as_json() in [known.as_json() for known in problems]:
                continue  # a part is checked twice, because a repair can show more
            problems.append(problem)
            on_problem(problem)
            if repair:
                try:
                    problem.repair()
                except (PipelineError, OSError) as error:
                    repaired = False
                    failed = f"{problem.remedy}; that failed: {error}"
                    on_problem(
                        Problem(kind=problem.kind, subject=problem.subject, message="not repaired", remedy=failed)
                    )
    return Examination(tuple(problems), repaired or not problems)


def _parts(dataset: Dataset, tracker: Tracker, home: Path) -> list[Callable[[], Iterator[Problem]]]:
    def of_store(part: Callable[[Dataset, Tracker], Iterator[Problem]]) -> Callable[[], Iterator[Problem]]:
        return lambda: part(dataset, tracker) if readable(dataset, tracker) is None else iter(())

    return [
        lambda: scratch_problems(dataset),
        lambda: dagster_problems(home),
        lambda: contract_problems(dataset),
        lambda: ledger_problems(dataset),
        lambda: ledger_problems(dataset),  # a rebuilt ledger can name copies that are damaged
        lambda: day_problems(dataset),
        lambda: store_problems(tracker),
        of_store(version_problems),
        of_store(history_problems),
        of_store(history_problems),
        lambda: table_problems(dataset),
        lambda: report_problems(dataset),
    ]
