"""Runs of Dagster through its GraphQL API, as its UI starts and terminates them."""

import time
from collections.abc import Sequence
from typing import Any

from ae_pipeline.orchestration.console import LOGGERS
from benchmarks.servers import Servers

_DATASET = "flights"
_REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "ae_pipeline"}
_ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


class Api:
    """Client of the GraphQL API of running servers.

    Args:
        servers: The servers.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def ask(self, query: str, **variables: Any) -> Any:
        """Send a query and return its data.

        Raises:
            RuntimeError: The query failed.
        """
        answer = self._servers.ask(
            f"{self._servers.origin('dagster')}/graphql", {"query": query, "variables": variables}
        )
        if "errors" in answer:
            raise RuntimeError(answer["errors"])
        return answer["data"]

    def launch(self, job: str, days: Sequence[str]) -> str:
        """Start a run of a job, over all days if the job has days, and return its id."""
        tags = []
        if not job.endswith("_train"):
            bounds = {"start": days[0], "end": days[-1]}
            tags = [{"key": f"dagster/asset_partition_range_{name}", "value": day} for name, day in bounds.items()]
        return self._launch({**_REPOSITORY, "jobName": job}, tags)

    def materialize(self, assets: Sequence[str]) -> str:
        """Start a run of assets without days, as the button "Materialize" does, and return its id."""
        selection = [{"path": [_DATASET, asset]} for asset in assets]
        # Without a selection of checks, the checks of the assets are part of the run.
        return self._launch({**_REPOSITORY, "jobName": "__ASSET_JOB", "assetSelection": selection}, [])

    def _launch(self, selector: dict[str, Any], tags: list[dict[str, str]]) -> str:
        query = (
            "mutation($p:ExecutionParams!){launchRun(executionParams:$p){__typename ... on LaunchRunSuccess{run{runId}}"
            " ... on PythonError{message} ... on RunConfigValidationInvalid{errors{message}}}}"
        )
        params = {"selector": selector, "runConfigData": LOGGERS, "mode": "default"}
        answer = self.ask(query, p={**params, "executionMetadata": {"tags": tags}})["launchRun"]
        if "run" not in answer:
            raise RuntimeError(answer)
        return str(answer["run"]["runId"])

    def backfill(self, assets: Sequence[str], days: Sequence[str]) -> str:
        """Start a backfill of assets, and return its id."""
        query = (
            "mutation($p:LaunchBackfillParams!){launchPartitionBackfill(backfillParams:$p){__typename "
            "... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"
        )
        selection = [{"path": [_DATASET, asset]} for asset in assets]
        answer = self.ask(query, p={"assetSelection": selection, "partitionNames": list(days)})
        return str(answer["launchPartitionBackfill"]["backfillId"])

    def run_of_backfill(self, backfill: str, seconds: float = 120) -> str:
        """Wait for the first run of a backfill, and return its id.

        Raises:
            TimeoutError: There was none in time.
        """
        query = "query($f:RunsFilter!){runsOrError(filter:$f,limit:1){... on Runs{results{runId}}}}"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            tags = [{"key": "dagster/backfill", "value": backfill}]
            if runs := self.ask(query, f={"tags": tags})["runsOrError"]["results"]:
                return str(runs[0]["runId"])
            time.sleep(0.3)
        raise TimeoutError(f"backfill {backfill} has started no run")

    def wait_for_run(self, seconds: float = 120) -> str:
        """Wait for a started run, and return its id.

        Raises:
            TimeoutError: There was none in time.
        """
        query = "query($f:RunsFilter!){runsOrError(filter:$f,limit:1){... on Runs{results{runId}}}}"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if runs := self.ask(query, f={"statuses": ["STARTED"]})["runsOrError"]["results"]:
                return str(runs[0]["runId"])
            time.sleep(0.1)
        raise TimeoutError("no run has started")

    def status(self, run_id: str) -> str:
        """Return the status of a run."""
        return str(self._run(run_id)["status"])

    def _run(self, run_id: str) -> dict[str, Any]:
        query = "query($r:ID!){runOrError(runId:$r){... on Run{status stepStats{stepKey startTime}}}}"
        run: dict[str, Any] = self.ask(query, r=run_id)["runOrError"]
        return run

    def wait_for_status(self, run_id: str, status: str, seconds: float) -> bool:
        """Wait until a run has a status or has ended, and return whether it was in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.status(run_id) in {status, *_ENDED}:
                return True
            time.sleep(0.1)
        return False

    def wait_for_step(self, run_id: str, step: str, seconds: float = 180) -> None:
        """Wait until a run has started a step, or has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run = self._run(run_id)
            started = any(each["stepKey"] == step and each["startTime"] for each in run["stepStats"])
            if started or run["status"] in _ENDED:
                return
            time.sleep(0.05)

    def wait_for_end(self, run_id: str, seconds: float) -> str:
        """Wait until a run has ended, and return its status then, or after the time."""
        end = time.monotonic() + seconds
        while (status := self.status(run_id)) not in _ENDED and time.monotonic() < end:
            time.sleep(0.1)
        return status

    def terminate(self, run_id: str, *, forced: bool) -> None:
        """Terminate a run, as the button of the UI does."""
        policy = "MARK_AS_CANCELED_IMMEDIATELY" if forced else "SAFE_TERMINATE"
        query = "mutation($r:String!,$p:TerminateRunPolicy!){terminateRun(runId:$r,terminatePolicy:$p){__typename}}"
        self.ask(query, r=run_id, p=policy)
