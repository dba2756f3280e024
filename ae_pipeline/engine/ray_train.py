"""Work that all workers of Ray Train do together, such as the training of one network."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, TypeVar

from ae_pipeline.common.errors import ConfigError, EngineError, PipelineError
from ae_pipeline.common.text import first_line
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Result:
    """What the work of the first worker returned."""

    value: Any


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
    resources = connect().cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
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
        EngineError: The cluster does not answer, or workers were lost three times.
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
            value: R = _follow(mailbox, done, groups, report)
        except RayError as error:
            reason = first_line(getattr(error, "cause", None) or error)  # without the text of Ray around it
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


def _follow(mailbox: Any, done: Any, groups: list[Any], report: Callable[[Any], None]) -> Any:
    """Hand on what the workers send until the work is done, and return its result. Collect their placement groups."""
    import ray
    from ray.util.queue import Empty

    reports = skipped = 0
    starts, result = 0, None
    while True:
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
            case PipelineError():
                raise message
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
    if is_first:
        mailbox.put(_Result(value))
