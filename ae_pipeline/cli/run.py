"""`ae-pipeline run`: do what the planner says until a dataset is up to date."""

import datetime as dt
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ae_pipeline.cli.project import Project
from ae_pipeline.common.errors import PipelineError, RemovalError, TrainingError
from ae_pipeline.common.escape import terminal_line

if TYPE_CHECKING:
    from ae_pipeline.lifecycle.plan import Plan, Step, Work
    from ae_pipeline.storage.dataset import Dataset


def run(name: str, *, accepts_removal: bool = False) -> int:
    """Bring a dataset up to date and print a summary; return the exit status.

    A step that fails does not stop the steps that do not depend on it. Its error is raised at the end.

    Args:
        name: Name of the dataset.
        accepts_removal: Whether more than `max_removed_share` of the rows may go.

    Raises:
        RemovalError: Too many rows would go, so that nothing was changed.
        PipelineError: A step failed, no file has landed, or no version serves at the end.
    """
    from ae_pipeline.cli.summary import summarize, summarize_ingestion, verdict_line
    from ae_pipeline.ingestion.landing import require_landed

    started = time.monotonic()
    print(f"Bringing {name!r} up to date.")
    project = Project.load()
    dataset = project.dataset(name)
    _land_demo(project, dataset)
    if not dataset.config.source.is_fetched:
        require_landed(dataset)  # raises StorageError if nothing has landed
    warn_of_history(project, dataset)
    runner = _Runner(project, dataset, accepts_removal)
    try:
        # Planned under the lock: what another run does meanwhile is not done twice.
        with project.holding(dataset):
            runner.follow_plans()
    except PipelineError:
        print(summarize_ingestion(dataset))  # what became of the rows that landed
        raise
    print(summarize(dataset, project.tracker, project.definitions, project.instance))
    print(f"Took {time.monotonic() - started:.0f} s.")
    print(verdict_line(dataset))
    if runner.failure:
        raise runner.failure
    return 0


class _Runner:
    """Runs the work of the planner, each piece once."""

    def __init__(self, project: Project, dataset: "Dataset", accepts_removal: bool) -> None:
        self._project, self._dataset, self._accepts_removal = project, dataset, accepts_removal
        self._done: set[tuple[str, str]] = set()
        self.failure: PipelineError | None = None

    def follow_plans(self) -> None:
        """Ask the planner after each step, because the step changes what the dataset needs next."""
        from ae_pipeline.lifecycle.plan import plan_landing, plan_serving, plan_training
        from ae_pipeline.orchestration.cancelled import withdraw_cancelled_challenger
        from ae_pipeline.registry.names import CHAMPION

        tracker, now = self._project.tracker, dt.datetime.now(dt.UTC)
        withdraw_cancelled_challenger(self._dataset, tracker, self._project.instance)
        self._follow(lambda: plan_landing(self._dataset, self._dataset.config.today(), fetched_since=now))
        self._check_sizes()
        failure = self._publish_first()
        training = plan_training(self._dataset, tracker)
        reason = training.work[0].reason if training.work else training.idle
        print(f"\n{'Training' if training.work else 'Not training'}: {terminal_line(reason)}.", flush=True)
        previous = tracker.version(self._dataset.name, CHAMPION)
        self._follow(lambda: training)
        serving = self._follow(lambda: plan_serving(self._dataset, tracker))
        champion = tracker.version(self._dataset.name, CHAMPION)
        if champion is None:
            self.failure = self.failure or TrainingError(serving.idle)
        elif failure and previous and champion.version == previous.version:  # no other version published the days
            self.failure = self.failure or failure
        elif not self._done:
            print(f"\nNothing to do: {terminal_line(serving.idle)}.", flush=True)

    def _publish_first(self) -> PipelineError | None:
        """Publish and report new days under the version that serves, so that no training learns them unseen.

        A failure does not stop the training, because a new model can be the remedy.
        """
        from ae_pipeline.lifecycle.before_training import plan_before_training

        try:
            self._follow(lambda: plan_before_training(self._dataset, self._project.tracker))
        except RemovalError:
            raise  # nothing may change before somebody has accepted it
        except PipelineError as error:
            return error
        return None

    def _follow(self, ask: "Callable[[], Plan]") -> "Plan":
        """Do the work of a plan, one piece at a time, until a plan has no work that was not tried."""
        while True:
            plan = ask()
            work = next((each for each in plan.work if (each.step, each.state) not in self._done), None)
            if work is None:
                return plan
            self._done.add((work.step, work.state))
            try:
                self._do(work)
            except RemovalError:
                raise  # nothing may change before somebody has accepted it
            except PipelineError as error:
                if not self._can_continue(work.step):
                    raise
                self.failure = self.failure or error

    def _do(self, work: "Work") -> None:
        from ae_pipeline.lifecycle.plan import Step
        from ae_pipeline.orchestration.tags import ACCEPT_TAG, READ_TAG

        tags = {READ_TAG: "by an earlier run"} if work.step == Step.INGEST else {}
        tags |= {ACCEPT_TAG: "yes"} if self._accepts_removal else {}
        for days in work.ranges or (None,):
            self._project.run_job(self._dataset, work.step, days, tags=tags)

    def _check_sizes(self) -> None:
        """Raise an error before the first training if no model serves and the rows that were read cannot give one."""
        from ae_pipeline.ingestion.ledger import Ledger
        from ae_pipeline.registry.names import CHAMPION
        from ae_pipeline.training.preflight import check_landed

        dataset = self._dataset
        if dataset.paths.ledger.exists() and self._project.tracker.version(dataset.name, CHAMPION) is None:
            check_landed(dataset.config, Ledger.load(dataset.paths.ledger))

    def _can_continue(self, step: "Step") -> bool:
        """Return whether the other steps make sense after a step failed."""
        from ae_pipeline.ingestion.landing import last_ingest
        from ae_pipeline.lifecycle.plan import Step
        from ae_pipeline.registry.names import CHAMPION

        if step == Step.READ:  # the other files were read
            return last_ingest(self._dataset) is not None
        # After a failed training, the version that serves also scores the new days.
        return step == Step.TRAIN and self._project.tracker.version(self._dataset.name, CHAMPION) is not None


def warn_of_history(project: Project, dataset: "Dataset") -> None:
    """Print what is wrong with the history, because this run may add an entry that hides it."""
    from ae_pipeline.lifecycle.doctor.served import history_problems

    for problem in history_problems(dataset, project.tracker):
        text = f"{problem.subject}: {problem.message}; `ae-pipeline doctor {dataset.name} --repair` mends it"
        print(f"Warning: {terminal_line(text)}.", file=sys.stderr, flush=True)


def _land_demo(project: Project, dataset: "Dataset") -> None:
    from ae_pipeline.cli.demo import DEMOS
    from ae_pipeline.ingestion.landing_folder import landing_folder
    from ae_pipeline.orchestration.console import format_line
    from ae_pipeline.storage.project import find_project

    if not find_project().has_examples:
        return
    land, folder = DEMOS.get(dataset.name), landing_folder(dataset)
    if land and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))):
        with project.workspace.locked(dataset.name):
            landed = land(folder)
        print(format_line("landing", f"{landed:,} files landed in {folder}", time.time()), flush=True)
