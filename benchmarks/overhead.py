"""Cost of Dagster and MLflow: `make run` compared with two lower bounds, and one new day through the daemon.

**`make run`**: the command line builds the flights from scratch, in a separate process. The first lower bound is the
same work without Dagster and MLflow, in a separate process. The second one is the same graph with the same partitions
and empty bodies under Dagster. It also opens a fresh MLflow store once.

**Pages**: the report of a year after its days are scored. The benchmark measures the whole report, which ranks and
explains rows, then the page over all days from ranked rows, and the page of one day.

**One day**: `dagster dev` with its daemon and the shipped sensors. The benchmark brings days up to date and lands one
more day. It reports when the run was requested, when its process started to work, when it ended, and so on up to the
report.
"""

import datetime as dt
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ae_pipeline.storage.dataset import Dataset
from benchmarks.deployment import environment
from benchmarks.figures import Measured

if TYPE_CHECKING:
    from benchmarks.replay import Replay

FLIGHTS = "flights"
_WHOLE, _WORK, _EMPTY = (
    "make run, after installation",
    "pure work, no Dagster or MLflow",
    "empty graph and MLflow store",
)
_FIRST_DAYS = 90


def measure_run(rounds: int) -> list[Measured]:
    """Measure `make run` and its lower bounds."""
    taken: dict[str, list[float]] = {_WHOLE: [], _WORK: [], _EMPTY: []}
    rows = 0
    for _ in range(1 + rounds):
        for name, command in (
            (_WHOLE, ("-m", "ae_pipeline.cli", "run", FLIGHTS)),
            (_WORK, ("-m", "benchmarks.overhead", "work")),
            (_EMPTY, ("-m", "benchmarks.overhead", "empty")),
        ):
            with tempfile.TemporaryDirectory() as folder:
                rows = _run_timed(name, Path(folder), command, taken) or rows
    seconds = {name: statistics.median(values[1:]) for name, values in taken.items()}
    lower_bounds = seconds[_WORK] + seconds[_EMPTY]
    table = "make run beside its floors: flights, 365 days"
    figures = [Measured(table, name, "s", value, rows, 19) for name, value in seconds.items()]
    return [*figures, Measured(table, _WHOLE, "× the floors together", seconds[_WHOLE] / lower_bounds, rows, 19)]


def measure_pages(rounds: int) -> list[Measured]:
    """Measure the pages of a year, without the scoring."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.overhead", "pages", str(rounds)]
        completed = subprocess.run(command, env=environment(Path(folder)), capture_output=True, text=True, check=False)
    if completed.returncode:
        raise RuntimeError(f"pages failed:\n{completed.stdout}\n{completed.stderr}")
    result = json.loads(completed.stdout.splitlines()[-1])
    table = "pages of flights, 365 days, beyond the scoring"
    return [Measured(table, name, "s", seconds, result["rows"], 19) for name, seconds in result["seconds"].items()]


def _pages(rounds: int) -> str:
    """Do the work of a first run, rebuild its pages several times, and return the timings as JSON."""
    from ae_pipeline.detector.bundle import ModelBundle
    from ae_pipeline.reports.build import build_report
    from ae_pipeline.reports.day_pages import day_page
    from ae_pipeline.storage.paths import DatasetPaths

    rows, config = _work(), _shipped()
    paths = DatasetPaths(Path(os.environ["AE_PIPELINE_DATA"]), FLIGHTS)
    bundle = ModelBundle.load(paths.root / "bundle")
    days = sorted(path.stem for path in (paths.reports / "days").glob("*.parquet"))
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        taken.setdefault(name, []).append(time.perf_counter() - began)

    for _ in range(rounds):
        shutil.rmtree(paths.reports)
        timed("all of the report", lambda: build_report(days, Dataset(config, paths), bundle, 1, "none"))
        timed("the page over all days", lambda: build_report(days, Dataset(config, paths), bundle, 1, "none"))
        timed("the page of a day", lambda: day_page("2013-02-08", Dataset(config, paths), bundle, 1))
    return json.dumps({"rows": rows, "seconds": {name: statistics.median(values) for name, values in taken.items()}})


def _run_timed(name: str, root: Path, command: Sequence[str], taken: dict[str, list[float]]) -> int:
    began = time.perf_counter()
    completed = subprocess.run(
        [sys.executable, *command], env=environment(root), capture_output=True, text=True, check=False
    )
    taken[name].append(time.perf_counter() - began)
    if completed.returncode:
        raise RuntimeError(f"{name} failed:\n{completed.stdout}\n{completed.stderr}")
    print(f"{taken[name][-1]:8.1f} s  {name}", flush=True)
    last = completed.stdout.splitlines()[-1]
    return int(last) if last.isdigit() else 0


def _work() -> int:
    """Do the work of a first run with the functions of its assets, and return the number of rows."""
    from ae_pipeline.cli.demo import DEMOS
    from ae_pipeline.detector.bundle import ModelBundle
    from ae_pipeline.features.build import build_features_day, feature_columns
    from ae_pipeline.features.split import cut_window
    from ae_pipeline.gate.evaluation import gate_rows
    from ae_pipeline.gate.rules import compare, latents_not_collapsed
    from ae_pipeline.ingestion.landing import ingest
    from ae_pipeline.ingestion.raw import build_raw_day, count_duplicates
    from ae_pipeline.latents.publish import publish
    from ae_pipeline.reports.build import build_report
    from ae_pipeline.storage.paths import DatasetPaths
    from ae_pipeline.training.fit import fit_bundle
    from ae_pipeline.training.reference import with_reference

    config = _shipped()
    paths = DatasetPaths(Path(os.environ["AE_PIPELINE_DATA"]), FLIGHTS)
    DEMOS[FLIGHTS](paths.landing)
    intake = ingest(Dataset(config, paths), dt.datetime.now(dt.UTC).date())
    days = intake.ledger.days
    built = [build_raw_day(day, intake, paths) for day in days]
    count_duplicates(days, paths)
    content = {day: build_features_day(day, Dataset(config, paths), intake.contract).content_hash for day in days}
    columns = feature_columns(config, intake.contract)
    window = cut_window(content, config, config.gate.days)
    bundle, _ = fit_bundle(Dataset(config, paths), columns, window)
    bundle = with_reference(bundle, columns, paths)
    latents_not_collapsed(bundle.encode(window.rows("validation", paths)))
    compare(bundle, None, gate_rows(window, None, paths), "none serves", config.gate)
    bundle.save(paths.root / "bundle")
    bundle = ModelBundle.load(paths.root / "bundle")
    publish(days, Dataset(bundle.config, paths), bundle, 1, {})
    build_report(days, Dataset(config, paths), bundle, 1, "none")
    return sum(day.rows for day in built)


def _shipped() -> Any:
    import yaml

    import ae_pipeline
    from ae_pipeline.config.pipeline import PipelineConfig

    file = Path(ae_pipeline.__file__).parent / "defs" / FLIGHTS / "defs.yaml"
    return PipelineConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))["attributes"])


def _empty() -> None:
    """Run the same jobs over the same partitions with empty bodies."""
    import dagster as dg

    from ae_pipeline.cli.project import Project
    from ae_pipeline.config.pipeline import PipelineConfig
    from ae_pipeline.orchestration import component
    from ae_pipeline.orchestration.assets.common import check_result, dataset_asset
    from ae_pipeline.orchestration.resources import RunLock, Workspace

    def empty_asset(config: PipelineConfig, name: str, **options: Any) -> Callable[[Any], dg.AssetsDefinition]:
        def body(
            context: dg.AssetExecutionContext,
            workspace: Workspace,  # noqa: ARG001
            run_lock: RunLock,  # noqa: ARG001
        ) -> dg.MaterializeResult:  # type: ignore[type-arg]
            results = [check_result(context, check, True, "nothing was done") for check in options["checks"]]
            return dg.MaterializeResult(check_results=results)

        return lambda _: dataset_asset(config, name, **options)(body)

    for build in component.ASSETS:
        vars(sys.modules[build.__module__])["dataset_asset"] = empty_asset
    project = Project.load()
    project.tracker.open()
    days = ("2013-01-01", "2013-12-31")
    for job, span in (("ingest", days), ("train", None), ("publish", days)):
        project.run_job(project.dataset(FLIGHTS), job, span)


def measure_day(rounds: int) -> list[Measured]:
    """Measure one new day through the daemon, several times."""
    from benchmarks.replay import replaying

    changes = {"training": {"window_days": 90, "validation_days": 10, "calibration_days": 21, "epochs": 3}}
    taken: dict[str, list[float]] = {}
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        replay = stack.enter_context(replaying(Path(folder).resolve(), changes))
        _bring_up(replay)
        for index in range(_FIRST_DAYS, _FIRST_DAYS + rounds):
            rows.append(_rows_of(replay.source[index]))
            for part, seconds in _one_day(replay, index).items():
                taken.setdefault(part, []).append(seconds)
    table = f"one new day of flights through the daemon, after {_FIRST_DAYS} days"
    count = int(statistics.median(rows))
    return [Measured(table, part, "s", statistics.median(values), count, 19) for part, values in taken.items()]


def _bring_up(replay: "Replay") -> None:
    replay.wait("dagster dev answers", replay.api.is_up, 90)
    for name in ("landing", "rebuild"):
        replay.api.start_sensor(f"{FLIGHTS}_{name}")
    replay.land(_FIRST_DAYS)
    replay.wait("its days have features", lambda: replay.features() == _FIRST_DAYS and replay.is_quiet())
    replay.api.launch(f"{FLIGHTS}_train", {})
    replay.wait("version 1 serves", lambda: replay.champion() == 1)
    replay.wait("its days are published", lambda: replay.is_published(_FIRST_DAYS, 1) and _is_idle(replay))


def _is_idle(replay: "Replay") -> bool:
    return replay.is_quiet() and replay.api.says(f"{FLIGHTS}_rebuild", "every day is")


def _one_day(replay: "Replay", index: int) -> dict[str, float]:
    day = replay.paths.reports / "days" / f"{dt.date(2013, 1, 1) + dt.timedelta(days=index)}.parquet"
    landed = time.time()
    replay.land(index + 1)
    replay.wait("its report exists", lambda: day.exists() and _is_idle(replay))
    runs = {run["jobName"]: run for run in replay.api.runs(["SUCCESS"]) if run["creationTime"] >= landed}
    ingest, publish = (runs[f"{FLIGHTS}_{job}"] for job in ("ingest", "publish"))
    return {
        "file landed, until its run is asked for": ingest["creationTime"] - landed,
        "until the process of that run works": ingest["startTime"] - ingest["creationTime"],
        "raw_data and features": ingest["endTime"] - ingest["startTime"],
        "until the next run is asked for": publish["creationTime"] - ingest["endTime"],
        "until the process of the next run works": publish["startTime"] - publish["creationTime"],
        "latent_features and anomaly_report": publish["endTime"] - publish["startTime"],
        "in all": publish["endTime"] - landed,
    }


def _rows_of(path: Path) -> int:
    return len(pl.read_csv(path, columns=[0], infer_schema=False))


if __name__ == "__main__":
    if sys.argv[1] == "work":
        print(_work())
    elif sys.argv[1] == "pages":
        print(_pages(int(sys.argv[2])))
    else:
        _empty()
