"""Work that all workers of Ray Train do together, such as the training of one network."""

import logging
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, TypeVar

from ae_pipeline.common.errors import ConfigError, EngineError, PipelineError
from ae_pipeline.common.text import first_line, pluralize
from ae_pipeline.common.version import __version__
from ae_pipeline.engine.pools import log_again
from ae_pipeline.engine.ray_pool import connect, require_version

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

Report = Callable[[object], None]
Work = Callable[[T, "torch.device", Report], R]

_RESTARTS = 2
"""How often all workers start again because one of them was lost."""

_LOOK_SECONDS = 1.0
"""Time between two looks at whether the workers still work."""

_QUIET_SECONDS = 60.0
"""Time without a first worker after which a message says what the training waits for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Result:
    """What the work of the first worker returned."""

    value: Any


@dataclass(frozen=True)
class _Failure:
    """An error in the work of a worker that a new start would give again.

    Attributes:
        reason: Its type and first line.
        trace: Where it was raised.
    """

    reason: str
    trace: str


@dataclass(frozen=True)
class _Start:
    """The first worker has started, for the first time or again.

    Attributes:
        group: Placement group that holds the cores and GPUs of all workers.
    """

    group: Any


def require_capacity(workers: int, threads: int, *, use_gpu: bool) -> None:
    """Raise an error if the cluster is too small for some workers.

    Args:
        workers: Number of workers.
        threads: Cores of each worker.
        use_gpu: Whether each worker takes a GPU.

    Raises:
        ConfigError: The cluster has too few cores or GPUs, or Ray is not installed.
        EngineError: The cluster does not answer.
    """
    nodes = [node["Resources"] for node in connect().nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    if workers * threads > cpus:
        raise ConfigError(
            f"training.workers={workers} with training.threads={threads} needs {workers * threads} cores, but the Ray "
            f"cluster has {cpus}; lower one of the two, or add nodes (without RAY_ADDRESS, OMP_NUM_THREADS is a limit)"
        )
    if use_gpu and workers > gpus:
        raise ConfigError(
            f"training.workers={workers} needs as many GPUs, but the Ray cluster has {gpus}; lower it, add nodes, or "
            "set training.device: cpu"
        )
    fitting = sum(_fitting(node, threads, use_gpu=use_gpu) for node in nodes)
    if workers > fitting:
        raise ConfigError(
            f"training.workers={workers} needs {_described(threads, use_gpu=use_gpu)} on one node for each worker, but "
            f"the nodes of the Ray cluster have room for {fitting}; lower training.workers or training.threads, or add "
            "nodes"
        )


def _fitting(node: dict[str, float], threads: int, *, use_gpu: bool) -> int:
    """Return how many workers the resources of a node suffice for."""
    by_cores = int(node.get("CPU", 0)) // threads
    return min(by_cores, int(node.get("GPU", 0))) if use_gpu else by_cores


def _described(threads: int, *, use_gpu: bool) -> str:
    """Return what a worker takes, as part of a sentence."""
    return pluralize(threads, "core") + (" and a GPU" if use_gpu else "")


def work_together(
    work: "Work[T, R]", item: T, *, workers: int, threads: int, use_gpu: bool, report: Callable[[Any], None]
) -> R:
    """Call a function in several workers of Ray Train at once, and return the result of the first one.

    The workers are a process group of torch: NCCL on GPUs, and Gloo on the CPU. If one of them is lost, all start
    again. After an interrupt or an error in this process, they are ended.

    Args:
        work: Function of the item, of the device of the worker, and of a callback that reports to this process. All of
            it can be pickled.
        item: Its argument. The workers of a node share the memory of its numpy arrays, which they cannot write.
        workers: Number of workers.
        threads: Cores of each worker.
        use_gpu: Whether each worker takes a GPU.
        report: Callback for what the first worker reports. What it reports again after a new start is left out.

    Raises:
        ConfigError: The cluster has too few cores or GPUs, or Ray is not installed.
        EngineError: The cluster does not answer, workers were lost three times, or the work raised another error.
    """
    require_capacity(workers, threads, use_gpu=use_gpu)
    ray = connect()
    from ray.exceptions import RayError
    from ray.util.placement_group import remove_placement_group
    from ray.util.queue import Queue

    mailbox = Queue(actor_options={"num_cpus": 0})
    with tempfile.TemporaryDirectory(prefix="ray-train-", ignore_cleanup_errors=True) as folder:
        # `TorchTrainer.fit` takes over SIGINT and cannot be stopped from another thread. A task can be cancelled, and
        # all workers end with it.
        task = ray.remote(num_cpus=0, max_retries=0)(_fit)
        config = {"version": __version__, "work": work, "item": ray.put(item), "mailbox": mailbox}
        done = task.remote(config, workers, threads, use_gpu, folder)
        groups: list[Any] = []
        try:
            needs = f"{workers} × {_described(threads, use_gpu=use_gpu)}"
            value: R = _follow(mailbox, done, groups, report, needs)
        except RayError as error:
            reason = _reason(error)
            raise EngineError(
                f"the training lost its workers {_RESTARTS + 1} times, or the cluster ({reason}); look at the memory "
                "of the nodes, or set training.workers: 1"
            ) from error
        finally:
            ray.cancel(done, force=True)
            mailbox.shutdown(force=True)
            for group in groups:  # what was cancelled does not give back its cores
                remove_placement_group(group)
    return value


def _reason(error: BaseException) -> str:
    """Return what lost the workers, without the text of Ray around it."""
    cause = getattr(error, "cause", None) or error
    failures = getattr(cause, "worker_failures", None) or {}
    return first_line(next(iter(failures.values()), getattr(cause, "controller_failure", cause)))


def _follow(mailbox: Any, done: Any, groups: list[Any], report: Callable[[Any], None], needs: str) -> Any:
    """Hand on what the workers send until the work is done, and return its result. Collect their placement groups."""
    import ray
    from ray.util.queue import Empty

    reports = skipped = 0
    starts, result = 0, None
    quiet_until = time.monotonic() + _QUIET_SECONDS
    while True:
        if not starts and time.monotonic() > quiet_until:
            logger.info(f"the training waits for {needs} of the Ray cluster, which other work may hold")
            quiet_until = float("inf")
        is_done = bool(ray.wait([done], timeout=0)[0])
        try:
            message = mailbox.get(block=not is_done, timeout=_LOOK_SECONDS)
        except Empty:
            if is_done:
                break
            continue
        match message:
            case _Start(group):
                groups.append(group)
                starts, skipped = starts + 1, reports
                if starts > 1:
                    logger.warning("a worker of the training was lost; the training starts again")
            case _Result():
                result = message
            case PipelineError() | _Failure():
                raise _error(message)
            case logging.LogRecord():
                log_again([message])
            case _ if skipped:
                skipped -= 1
            case _:
                reports += 1
                report(message)
    ray.get(done)  # its error, if it has one
    if result is None:
        raise EngineError("the workers of the training ended without a result; set training.workers: 1")
    return result.value


def _error(message: PipelineError | _Failure) -> PipelineError:
    """Return the error that a worker sends, and log its traceback if it is not one of the package."""
    if isinstance(message, PipelineError):
        return message
    logger.error(message.trace)
    return EngineError(
        f"a worker of the training failed: {message.reason}; the log has its traceback, and training.workers: 1 trains "
        "without workers"
    )


def _fit(config: dict[str, Any], workers: int, threads: int, use_gpu: bool, folder: str) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": threads, "GPU": 1} if use_gpu else {"CPU": threads}
    TorchTrainer(
        _work_as_one_of_them,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=_RESTARTS)),
    ).fit()


def _work_as_one_of_them(config: dict[str, Any]) -> None:
    import ray
    from ray.train import get_context
    from ray.train.torch import get_device
    from ray.util import get_current_placement_group

    mailbox, is_first = config["mailbox"], get_context().get_world_rank() == 0
    try:
        require_version(config["version"])
        if is_first:
            mailbox.put(_Start(get_current_placement_group()))
            package = logging.getLogger("ae_pipeline")  # the messages of Ray stay in its logs
            package.addHandler(QueueHandler(mailbox))
            package.setLevel(logging.INFO)
        value = config["work"](ray.get(config["item"]), get_device(), mailbox.put if is_first else lambda _: None)
    except PipelineError as error:
        mailbox.put(error)  # a repetition would give the same error
        raise
    except Exception as error:
        if not _has_lost_others(error):
            reason = f"{type(error).__name__}: {first_line(error)}"
            mailbox.put(_Failure(reason, traceback.format_exc()))
        raise
    if is_first:
        mailbox.put(_Result(value))


def _has_lost_others(error: Exception) -> bool:
    """Return whether an error says that a worker lost the others, or Ray an object, and not that its work failed."""
    from ray.exceptions import RayError
    from torch.distributed import DistError

    # Gloo raises errors without a type of their own.
    text = str(error).lower()
    is_of_gloo = isinstance(error, RuntimeError) and ("gloo" in text or "by peer" in text)
    return is_of_gloo or isinstance(error, RayError | DistError)
