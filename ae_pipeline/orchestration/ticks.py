"""Ticks of sensors that requested nothing: Dagster stores each of them, and keeps them for a week.

A tick takes 1.3 kB, and Dagster has no option to store none. Ticks less often would delay the reaction to a landed
file. So the ticks of the last hour are kept, and the database does not grow beyond them.
"""

import time

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus

KEPT_SECONDS = 3600.0
"""Age from which such a tick is deleted. Ten datasets then have 12 MB of them, and would otherwise add 270 MB a day."""


def purge_idle_ticks(instance: dg.DagsterInstance, now: float | None = None) -> None:
    """Delete the ticks of all sensors that requested nothing and are older than an hour.

    Args:
        instance: Dagster's instance.
        now: Seconds since 1970; the clock by default.
    """
    if instance.is_ephemeral:  # it has no sensors
        return
    limit = (time.time() if now is None else now) - KEPT_SECONDS
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        instance.purge_ticks(state.instigator_origin_id, state.selector_id, limit, [TickStatus.SKIPPED])
