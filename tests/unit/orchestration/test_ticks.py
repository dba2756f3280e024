"""Ticks of sensors that requested nothing are deleted after an hour."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
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

from ae_pipeline.orchestration.ticks import KEPT_SECONDS, purge_idle_ticks

NOW = 1_700_000_000.0


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with a running sensor."""
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="shop"), "shop")
    origin = RemoteRepositoryOrigin(location, "shop").get_instigator_origin("orders_landing")
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())
        instance.add_instigator_state(state)
        yield instance


def test_idle_ticks_are_deleted_after_an_hour_and_others_stay(instance: dg.DagsterInstance) -> None:
    (state,) = instance.all_instigator_state()
    for age in (KEPT_SECONDS + 1, KEPT_SECONDS - 1):
        for status in (TickStatus.SKIPPED, TickStatus.SUCCESS):
            instance.create_tick(
                TickData(
                    instigator_origin_id=state.instigator_origin_id,
                    instigator_name=state.name,
                    instigator_type=InstigatorType.SENSOR,
                    status=status,
                    timestamp=NOW - age,
                    selector_id=state.selector_id,
                    run_ids=[],
                )
            )
    purge_idle_ticks(instance, NOW)
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
    statuses = sorted((tick.status.value, NOW - tick.timestamp > KEPT_SECONDS) for tick in ticks)
    assert statuses == [("SKIPPED", False), ("SUCCESS", False), ("SUCCESS", True)]


def test_an_instance_without_a_storage_of_sensors_has_no_ticks() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert instance.is_ephemeral
        purge_idle_ticks(instance, NOW)
