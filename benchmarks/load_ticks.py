"""Ticks of sensors in Dagster's database, for `benchmarks.load`: hours of them, as fast as they can be stored."""

from pathlib import Path

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from ae_pipeline.orchestration.ticks import purge_idle_ticks

_DATASETS = 10
_SENSORS = {
    "landing": (10, "every landed file is read, and every day has its features"),
    "rebuild": (10, "every day is published and reported on under version 12"),
    "failure": (30, ""),
}
"""Seconds between two ticks of each sensor of a dataset, and why a tick requests nothing."""

_DEAD_RUNS_SECONDS = 20
_START = 1_700_000_000.0


def measure_ticks(root: Path, hours: int) -> dict[str, float]:
    """Measure the database of ticks after some hours in which the sensors of ten datasets request nothing.

    Each tick is stored twice, as Dagster's daemon does: when it starts and when it has ended. `end_dead_runs` deletes
    old ones as often as in a deployment, with the time of the tick as the clock.
    """
    (root / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    sensors = {f"load_{index}_{name}": each for index in range(_DATASETS) for name, each in _SENSORS.items()}
    sensors["end_dead_runs"] = (_DEAD_RUNS_SECONDS, "no active run is dead")
    stored = 0
    with dg.DagsterInstance.from_config(str(root)) as instance:
        states = {name: _state(name) for name in sensors}
        for state in states.values():
            instance.add_instigator_state(state)
        for second in range(0, hours * 3600, 10):
            for name, (interval, reason) in sensors.items():
                if second % interval == 0:
                    _store(instance, states[name], _START + second, reason)
                    stored += 1
            if second % _DEAD_RUNS_SECONDS == 0:
                purge_idle_ticks(instance, _START + second)
    written = sum(path.stat().st_size for path in (root / "schedules").rglob("*") if path.is_file())
    return {"ticks": float(stored), "database of ticks, MB": written / 1e6}


def _state(name: str) -> InstigatorState:
    target = LoadableTargetOrigin(module_name="ae_pipeline.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, "ae_pipeline")
    origin = RemoteRepositoryOrigin(location, "__repository__").get_instigator_origin(name)
    return InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())


def _store(instance: dg.DagsterInstance, state: InstigatorState, at: float, reason: str) -> None:
    data = TickData(
        instigator_origin_id=state.instigator_origin_id,
        instigator_name=state.name,
        instigator_type=InstigatorType.SENSOR,
        status=TickStatus.STARTED,
        timestamp=at,
        selector_id=state.selector_id,
        run_ids=[],
    )
    tick = instance.create_tick(data)
    ended = tick.with_status(TickStatus.SKIPPED, end_timestamp=at + 0.1)
    instance.update_tick(ended.with_reason(reason) if reason else ended)
