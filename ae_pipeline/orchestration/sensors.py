"""Sensors of a dataset: each asks the planner what the dataset needs, and requests the runs that do it."""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from ae_pipeline.common.errors import PipelineError, UnavailableError
from ae_pipeline.common.timestamps import now
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.cancelled import withdraw_cancelled_challenger
from ae_pipeline.orchestration.dead_runs import describe_run, end_dead_runs
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.runs import Answer, active_run, active_training, request_runs
from ae_pipeline.orchestration.ticks import purge_idle_ticks
from ae_pipeline.storage.dataset import Dataset

_TICK_SECONDS = 10
"""Least time between two looks of a sensor."""

_DRIFT_SECONDS = 300
"""The same for the sensor of drift. It compares days, so that a tick every ten seconds would only fill the disk."""

_DEAD_RUNS_SECONDS = 20
"""The same for the sensor that ends dead runs."""

_SETTLE_SECONDS = 3.0
"""Time since a landed file was last written before it is read."""

Look = Callable[[Dataset, Workspace, dg.DagsterInstance], Answer]


def landing_requests(dataset: Dataset, workspace: Workspace, instance: dg.DagsterInstance) -> Answer:
    """Request to read new and changed landed files, and raw_data and features of the days that they change."""
    if active := active_run(dataset, workspace, instance):
        return dg.SkipReason(active)
    from ae_pipeline.lifecycle.landing_look import look_at_landing

    plan = look_at_landing(dataset, dataset.config.today(), _SETTLE_SECONDS)
    return request_runs(plan, dataset.config, instance)


def rebuild_requests(dataset: Dataset, workspace: Workspace, instance: dg.DagsterInstance) -> Answer:
    """Request latents and reports of the days that differ from what the model that serves would give."""
    if active := active_run(dataset, workspace, instance):
        return dg.SkipReason(active)
    from ae_pipeline.lifecycle.plan import plan_serving

    tracker = workspace.tracker()
    withdraw_cancelled_challenger(dataset, tracker, instance)
    return request_runs(plan_serving(dataset, tracker), dataset.config, instance)


def early_training_requests(dataset: Dataset, workspace: Workspace, instance: dg.DagsterInstance) -> Answer:
    """Request a training before the next scheduled one if enough drifted days are new to a training."""
    if active := active_training(dataset, workspace, instance):
        return dg.SkipReason(active)
    from ae_pipeline.lifecycle.before_training import waits_for_publication
    from ae_pipeline.lifecycle.plan import plan_early_training

    plan = plan_early_training(dataset, workspace.tracker())
    if plan.work and (waits := waits_for_publication(dataset, workspace.tracker())):
        return dg.SkipReason(waits)
    return request_runs(plan, dataset.config, instance)


def build_sensors(config: PipelineConfig, jobs: dict[str, Any]) -> list[dg.SensorDefinition]:
    """Build the sensors of a dataset; they are stopped until somebody starts them."""
    sensors = [
        _sensor(
            config,
            "landing",
            landing_requests,
            (jobs["intake"], jobs["ingest"]),
            "Fetch rows that are due, read new and changed landed files, and materialize raw_data and features for "
            "the affected days. The sensor rebuild does the rest.",
        ),
        _sensor(
            config,
            "rebuild",
            rebuild_requests,
            (jobs["publish"], jobs["decide"]),
            "Publish and report on every day whose latents differ from those of the model that serves: new days, late "
            "data, and all days after a promotion or a rollback.",
        ),
    ]
    if config.retrain.drifting_days is not None:
        description = "Train before the next scheduled training if the newest days have drifted."
        train = (jobs["train"],)
        sensors.append(_sensor(config, "drift", early_training_requests, train, description, _DRIFT_SECONDS))
    return [*sensors, _failure_sensor(config)]


def _sensor(
    config: PipelineConfig, name: str, look: Look, jobs: Sequence[Any], description: str, seconds: int = _TICK_SECONDS
) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{config.dataset}_{name}",
        jobs=jobs,
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=description,
    )
    def sensor(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> Answer:
        dataset = workspace.dataset(config)
        try:
            workspace.refresh(config.dataset)
            return look(dataset, workspace, context.instance)
        except PipelineError as error:
            from ae_pipeline.lifecycle.alerts import raise_without_lock
            from ae_pipeline.monitoring.alerts import Alert, AlertEvent

            message = f"the sensor {config.dataset}_{name} cannot find out what is due: {error}"
            alert = Alert(event=AlertEvent.RUN_FAILED, key=f"sensor {name} {_subject(error)}", message=message)
            raise_without_lock(alert, dataset)
            raise

    return sensor


def _subject(error: PipelineError) -> str:
    """Return what an alert about an error has in common with those of the same cause, which are not raised again.

    An outage of the object store is one alert a day, because its text differs each time.
    """
    return f"{type(error).__name__} {now()[:10]}" if isinstance(error, UnavailableError) else str(error)


def build_dead_runs_sensor() -> dg.SensorDefinition:
    """Build the sensor of the deployment that ends dead runs of all datasets; it runs from the start."""

    @dg.sensor(
        name="end_dead_runs",
        minimum_interval_seconds=_DEAD_RUNS_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="End runs whose process was killed, or whose machine was restarted, whatever started them. "
        "Otherwise they block their dataset for ever. Delete ticks of sensors that requested nothing an hour ago.",
    )
    def sensor(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason:
        purge_idle_ticks(context.instance)
        ended = end_dead_runs(context.instance, workspace.paths, asks_launcher=True)
        names = ", ".join(describe_run(run) for run in ended)
        return dg.SkipReason(f"ended, because the process is dead: {names}" if ended else "no active run is dead")

    return sensor


def _failure_sensor(config: PipelineConfig) -> dg.SensorDefinition:
    # A failed run belongs into the report, and to the webhook, without anybody starting a sensor first.
    @dg.run_failure_sensor(
        name=f"{config.dataset}_failure",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Raise an alert for each failed run of this dataset: in the report, and by the webhook.",
    )
    def sensor(context: dg.RunFailureSensorContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason | None:
        from ae_pipeline.lifecycle.alerts import raise_without_lock
        from ae_pipeline.orchestration.failures import belongs_to, failure_alert, failure_reason

        run, dataset = context.dagster_run, workspace.dataset(config)
        if not belongs_to(run, config):
            return dg.SkipReason(f"run {run.run_id} does not belong to {config.dataset!r}")
        alert = failure_alert(run, failure_reason(run, context.failure_event, context.instance), dataset.paths)
        if alert is None:
            return dg.SkipReason(f"run {run.run_id} failed because of a broken contract, which has an alert already")
        raise_without_lock(alert, dataset)
        return None

    return sensor
