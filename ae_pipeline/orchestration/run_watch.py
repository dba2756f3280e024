"""A watch over the run that this process executes: it stops when the run is cancelled, even if nobody can tell it."""

import logging
import multiprocessing
import signal
import threading
from contextlib import ExitStack, suppress
from typing import Self

import dagster as dg

from ae_pipeline.common.signals import GRACE_SECONDS, SignalWatch
from ae_pipeline.orchestration.dead_runs import end_run

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Time between two looks at the status of the run."""

_RUNNING = {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED}


class RunWatch:
    """Interrupts this process when its run is no longer active in Dagster, and ends it if it goes on then.

    Dagster's message to cancel a run does not reach a process whose code server is gone, nor the steps of a run whose
    process was killed. A process that nobody can reach would train on, unseen, and hold the lock of the dataset.

    Args:
        run: Run that this process executes, as a whole or a step of it.
        instance: Dagster's instance.
    """

    def __init__(self, run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
        self._run, self._instance = run, instance
        self._ended, self._stack = threading.Event(), ExitStack()

    def __enter__(self) -> Self:
        """Start to watch."""
        if not self._instance.is_ephemeral:  # an instance in memory belongs to one thread
            self._stack.enter_context(SignalWatch(self._end))
            threading.Thread(target=self._watch, name="run-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to watch."""
        self._ended.set()
        self._stack.close()

    def require_active(self) -> None:
        """Stop here if the run was cancelled, or ended by somebody else. Call it before what cannot be undone.

        Raises:
            DagsterExecutionInterruptedError: The run is not active any more.
        """
        if reason := self._reason():
            raise dg.DagsterExecutionInterruptedError(reason)

    def _reason(self) -> str | None:
        """Return why this process must stop, or None."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return "the process that started this one is gone"
        run = self._instance.get_run_by_id(self._run.run_id)
        if run is None:
            return f"run {self._run.run_id} was deleted"
        return None if run.status in _RUNNING else f"run {run.run_id} is {run.status.value.lower()}"

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            reason = None
            with suppress(Exception):  # a busy database says nothing about the run
                reason = self._reason()
            # Dagster's own message comes first, if it can reach this process.
            if reason and not self._ended.wait(GRACE_SECONDS):
                logger.warning(f"{reason}; its process stops")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _end(self, signum: int) -> None:
        end_run(self._run, self._instance, f"its process was stopped by {signal.Signals(signum).name}")
