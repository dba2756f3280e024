"""The pool of a Ray cluster: of `RAY_ADDRESS`, or one on this machine that ends with this process."""

import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from ae_pipeline.common.cores import cores
from ae_pipeline.common.errors import ConfigError, EngineError
from ae_pipeline.common.version import __version__
from ae_pipeline.engine.pools import Outcome, call_with_logs

T = TypeVar("T")
R = TypeVar("R")


class RayPool:
    """Tasks of a Ray cluster, each on one core. Ray starts a task again if its node is lost.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: The cluster does not answer.
    """

    def __init__(self) -> None:
        ray = connect()
        self._task: Any = ray.remote(
            num_cpus=1,
            max_retries=3,
            # A task has one core, as many as it asks for.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}},
        )(_call)
        self._refs: dict[Future[Any], Any] = {}
        self.max_pending = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, work: Callable[[T], R], item: T) -> "Future[Outcome[R]]":
        """Start the work on an item."""
        ref = self._task.remote(__version__, work, item)
        future: Future[Outcome[R]] = ref.future()
        self._refs[future] = ref
        return future

    def result(self, future: "Future[Outcome[R]]") -> Outcome[R]:
        """Wait for an item, and return its outcome or raise its error."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return future.result()
        except RayTaskError as error:
            cause: BaseException = error.cause  # without the text of Ray around it
            if "failed to import on the worker" in str(cause):
                raise EngineError(
                    "a node of the Ray cluster has no ae_pipeline; install the same version on all nodes"
                ) from cause
            raise cause from None
        except RayError as error:
            raise EngineError(
                f"a task of Ray lost its worker in each attempt ({type(error).__name__}); look at the memory of its "
                "nodes, or set AE_PIPELINE_ENGINE=threads"
            ) from error
        finally:
            self._refs.pop(future, None)

    def finish(self, futures: "Iterable[Future[Any]]") -> None:
        """Wait for these items. Ray cannot cancel an item only if it has not started."""
        wait([future for future in futures if self._refs.pop(future, None) is not None])

    def stop(self, futures: "Iterable[Future[Any]]") -> None:
        """End the work on these items."""
        import ray

        running = [future for future in futures if future in self._refs]
        for future in running:
            ray.cancel(self._refs.pop(future), force=True)
        wait(running)


def _call(version: str, work: Callable[[T], R], item: T) -> Outcome[R]:
    require_version(version)
    return call_with_logs(work, item)


def require_version(version: str) -> None:
    """Raise an error if this worker has another version of the package than the process that gave it the work.

    Raises:
        EngineError: The versions differ.
    """
    if version != __version__:
        raise EngineError(
            f"node {platform.node()} of the Ray cluster has ae_pipeline {__version__}, but the run has {version}; "
            "install the same version on all nodes"
        )


def connect() -> Any:
    """Return the module of Ray, connected to the cluster of `RAY_ADDRESS`, or to one that it starts here.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: The cluster does not answer.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            "AE_PIPELINE_ENGINE is ray, but Ray is not installed; install ae-pipeline[ray], or set the variable to "
            "threads or processes"
        ) from error
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False} if address == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise EngineError(
            f"the Ray cluster at RAY_ADDRESS={address} does not answer ({type(error).__name__}); start it, correct the "
            "variable, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if the cluster asks for a token"
        ) from error
    return ray
