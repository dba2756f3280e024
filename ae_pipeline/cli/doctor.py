"""`ae-pipeline doctor`: check the whole state of datasets, and repair it."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ae_pipeline.cli.project import Project

if TYPE_CHECKING:
    from ae_pipeline.lifecycle.doctor.problem import Problem


def doctor(name: str | None, *, repair: bool, as_json: bool) -> int:
    """Check datasets, and print what is wrong. Return 1 if a problem remains, otherwise 0.

    Dagster's instance stays closed, because the command checks its databases.

    Args:
        name: Dataset to check; all by default.
        repair: Whether to repair, while no run works on the dataset.
        as_json: Whether to print JSON instead of text.

    Raises:
        ConfigError: The project has no such dataset.
    """
    from ae_pipeline.lifecycle.doctor.examine import Examination, examine
    from ae_pipeline.lifecycle.doctor.landed import scratch_problems
    from ae_pipeline.lifecycle.doctor.lost import lost_files
    from ae_pipeline.orchestration.console import print_messages

    def show(problem: "Problem") -> None:
        if not as_json:
            verb = "repair" if repair else "--repair would"
            print(f"{problem.kind}: {problem.subject}: {problem.message}\n    {verb}: {problem.remedy}", flush=True)

    if not as_json:
        print_messages()
    project = Project.load(opens_instance=False)
    tracker, home = project.tracker, Path(os.environ["DAGSTER_HOME"])
    results = {}
    for each in [name] if name else sorted(project.datasets):
        dataset = project.dataset(each, refreshes=False)
        if repair:
            for problem in scratch_problems(dataset):  # a lock that is not a file cannot be held
                if problem.kind == "lock":
                    problem.repair()
        for problem in (lost := tuple(lost_files(dataset.paths))):
            show(problem)
        if lost and not repair:
            results[each] = Examination(lost, repaired=False)
        else:
            with project.workspace.locked(each, accepts_loss=True) if repair else nullcontext():
                result = examine(dataset, tracker, home, show, repair=repair)
            results[each] = Examination((*lost, *result.problems), result.repaired)
        if not as_json:
            print(_conclusion(each, len(results[each].problems), repaired=repair and results[each].repaired))
    if as_json:
        report = {
            each: {"repaired": repair and result.repaired, "problems": [p.as_json() for p in result.problems]}
            for each, result in results.items()
        }
        json.dump(report, sys.stdout, indent=1)
        print()
    return 0 if all(result.repaired for result in results.values()) else 1


def _conclusion(name: str, problems: int, *, repaired: bool) -> str:
    if not problems:
        return f"{name}: everything is whole."
    count = f"{problems} problem{'s' if problems > 1 else ''}"
    if repaired:
        return f"{name}: {count} repaired, or left to the next run; `ae-pipeline run {name}` builds the rest again."
    return f"{name}: {count}; `ae-pipeline doctor {name} --repair` repairs what it can."
