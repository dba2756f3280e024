"""Jobs of a dataset, the schedule that retrains it, and the sensors that keep its tables up to date."""

import datetime as dt
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from ae_pipeline.common.errors import PipelineError, SchemaError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.rollback import build_rollback_job
from ae_pipeline.orchestration.stages import DATASET_TAG, as_dagster_failure, asset_key
from ae_pipeline.orchestration.upkeep import Answer, drift_work, landed_work, next_training, stale_work
from ae_pipeline.storage.dataset import Dataset

# Dagster copies a failure sensor by a parameter of its own that it calls beta: nobody here has a choice.
warnings.filterwarnings("ignore", message="Parameter `owners` of initializer `SensorDefinition.__init__` is currently")

JOBS = {
    "ingest": (("raw_data", "features"), "Reads what has landed and prepares it, for a range of days."),
    "train": (
        ("autoencoder", "champion"),
        "Trains on the newest window and lets the model take over if it passes the gate.",
    ),
    "publish": (
        ("latent_features", "anomaly_report"),
        "Scores and publishes days under the champion, and reports on them.",
    ),
    "decide": (
        ("champion",),
        "Lets a trained model take over if it has passed the gate: the end of a training that was cut short.",
    ),
    "day": (
        ("raw_data", "features", "latent_features", "anomaly_report"),
        "All that a new day needs under the model that serves; training is a job of its own.",
    ),
}
"""Jobs of each dataset over its assets, by the end of their names: stages and what they are for."""

_TICK_SECONDS = 10
"""How often the sensors look, where nothing else keeps the daemon."""

_RETRIED = {
    # A run whose process was killed is run again; what a step's own retry has not mended would only fail anew.
    "dagster/max_retries": "1",
    "dagster/retry_on_asset_or_op_failure": "false",
}


def job_name(config: PipelineConfig, job: str) -> str:
    """Names a job of a dataset."""
    return f"{config.dataset}_{job}"


def build_automation(config: PipelineConfig) -> dg.Definitions:
    """Builds jobs, schedule and sensors of a dataset."""
    jobs = {
        job: dg.define_asset_job(
            job_name(config, job),
            selection=dg.AssetSelection.assets(*(asset_key(config, stage) for stage in stages)),
            description=message,
            tags={DATASET_TAG: config.dataset, **_RETRIED},
            config=LOGGERS,
        )
        for job, (stages, message) in JOBS.items()
    }
    intake = _intake_job(config)
    sensors = [
        _sensor(
            config,
            "landing",
            landed_work,
            (intake, jobs["ingest"]),
            "Reads new and changed landed files, and brings raw_data and features of the days that they change up to "
            "date. Latents and reports follow by the other sensor.",
        ),
        _sensor(
            config,
            "rebuild",
            stale_work,
            (jobs["publish"], jobs["decide"]),
            "Publishes and reports on every day whose rows in the latent table are not those of its features under the "
            "model that serves: new days, late data, and all days after a promotion or a rollback.",
        ),
    ]
    if config.retrain.drifting_days is not None:
        sensors.append(
            _sensor(config, "drift", drift_work, [jobs["train"]], "Trains before its time once the newest days drift.")
        )
    return dg.Definitions(
        jobs=[*jobs.values(), intake, build_rollback_job(config)],
        schedules=[_retraining_schedule(config)],
        sensors=[*sensors, _failure_sensor(config)],
    )


def _intake_job(config: PipelineConfig) -> dg.JobDefinition:
    @dg.op(
        name=f"{config.dataset}_read_landed",
        description="Reads every new or changed landed file into its staged copy; the ledger then knows its days.",
        required_resource_keys={"workspace", f"{config.dataset}_lock"},
        pool=config.dataset,
    )
    def op(context: dg.OpExecutionContext) -> None:
        from ae_pipeline.ingestion.landing import ingest
        from ae_pipeline.monitoring.alerts import Alert, AlertEvent
        from ae_pipeline.orchestration.alerts import alert_broken_contract, key_of, tell

        workspace: Workspace = context.resources.workspace
        paths, run = workspace.paths(config.dataset), context.run
        with as_dagster_failure():
            try:
                intake = ingest(
                    Dataset(config, paths), dt.datetime.now(dt.UTC).date(), ProgressLogger(context.log.info)
                )
            except SchemaError as error:
                subjects = (str(error),)  # the same of each attempt, whichever files land beside it
                alert = Alert(AlertEvent.CONTRACT_BROKEN, key_of(run), str(error), run.run_id, subjects=subjects)
                tell(alert, Dataset(config, paths), context.log.warning)
                raise
        alert_broken_contract(intake.ledger, None, Dataset(config, paths), run.run_id, context.log.warning, intake.read)
        days = {day for name in intake.read for day in intake.ledger.files[name].days}
        context.log.info(f"{pluralize(len(intake.read), 'file')} read, with rows on {pluralize(len(days), 'day')}")

    @dg.job(
        name=job_name(config, "intake"),
        description="Reads new and changed landed files; which days they change is known after that.",
        tags={DATASET_TAG: config.dataset, **_RETRIED},
    )
    def job() -> None:
        op()

    return job


def _retraining_schedule(config: PipelineConfig) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{config.dataset}_retrain",
        cron_schedule=config.retrain.cron,
        execution_timezone="UTC",
        job_name=job_name(config, "train"),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Trains anew when enough new rows have come since the last training; otherwise skips and says why.",
    )
    def retrain(
        context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.RunRequest | dg.SkipReason:
        return next_training(config, workspace, context.instance)

    return retrain


def _sensor(
    config: PipelineConfig,
    name: str,
    look: Callable[[PipelineConfig, Workspace, dg.DagsterInstance], Answer],
    jobs: Sequence[Any],
    description: str,
) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{config.dataset}_{name}",
        jobs=jobs,
        minimum_interval_seconds=_TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=description,
    )
    def sensor(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> Answer:
        try:
            return look(config, workspace, context.instance)
        except PipelineError as error:
            from ae_pipeline.monitoring.alerts import Alert, AlertEvent
            from ae_pipeline.orchestration.alerts import raise_alert_unlocked

            message = f"sensor {config.dataset}_{name} cannot tell what is to be done: {error}"
            alert = Alert(AlertEvent.RUN_FAILED, f"sensor {name} {error}", message)
            raise_alert_unlocked(alert, Dataset(config, workspace.paths(config.dataset)), context.log.warning)
            raise

    return sensor


def _failure_sensor(config: PipelineConfig) -> dg.SensorDefinition:
    # An alert that somebody has to switch on first would be missed by whoever configured a webhook for it.
    running = dg.DefaultSensorStatus.RUNNING if config.alerts.webhook else dg.DefaultSensorStatus.STOPPED

    @dg.run_failure_sensor(
        name=f"{config.dataset}_failure",
        default_status=running,
        description="Raises an alert for each run of this dataset that has failed: in the report, and by the webhook.",
    )
    def sensor(context: dg.RunFailureSensorContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason | None:
        from ae_pipeline.orchestration.alerts import concerns, failure_alert, raise_alert_unlocked, reason_of

        run, paths = context.dagster_run, workspace.paths(config.dataset)
        if not concerns(run, config):
            return dg.SkipReason(f"run {run.run_id} is not of {config.dataset!r}")
        alert = failure_alert(run, reason_of(run, context.failure_event, context.instance), paths)
        if alert is None:
            return dg.SkipReason(f"run {run.run_id} failed for a broken contract, of which an alert was raised")
        raise_alert_unlocked(alert, Dataset(config, paths), context.log.warning)
        return None

    return sensor
