"""Jobs of a dataset and the schedule that retrains it."""

from typing import Any

import dagster as dg

from ae_pipeline.config import PipelineConfig
from ae_pipeline.orchestration.retraining import is_training_due, last_training
from ae_pipeline.orchestration.stages import asset_key
from ae_pipeline.orchestration.workspace import Workspace

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
    "day": (
        ("raw_data", "features", "latent_features", "anomaly_report"),
        "All that a new day needs under the model that serves; training is a job of its own.",
    ),
}
"""Jobs of each dataset, by the end of their names: stages and what they are for."""

LOGGERS: dict[str, Any] = {"loggers": {"console": {"config": {}}}}
"""Run config that chooses our console; without it Dagster prints every event it stores."""

_RUNNING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def job_name(config: PipelineConfig, job: str) -> str:
    """Names a job of a dataset."""
    return f"{config.dataset}_{job}"


def build_automation(config: PipelineConfig) -> dg.Definitions:
    """Builds jobs and schedule of a dataset."""
    jobs = [
        dg.define_asset_job(
            job_name(config, job),
            selection=dg.AssetSelection.assets(*(asset_key(config, stage) for stage in stages)),
            description=words,
            tags={"ae_pipeline/dataset": config.dataset},
            config=LOGGERS,
        )
        for job, (stages, words) in JOBS.items()
    ]
    return dg.Definitions(jobs=jobs, schedules=[_retraining_schedule(config)])


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


def next_training(
    config: PipelineConfig, workspace: Workspace, instance: dg.DagsterInstance
) -> dg.RunRequest | dg.SkipReason:
    """Asks for a training where one is due, and otherwise says why not."""
    running = instance.get_runs(dg.RunsFilter(job_name=job_name(config, "train"), statuses=_RUNNING), limit=1)
    if running:
        return dg.SkipReason(f"a training is running: run {running[0].run_id}")
    from ae_pipeline.preprocessing.features import features_content  # polars, which loading the definitions can spare

    now = features_content(config, workspace.paths(config.dataset))
    due = is_training_due(config, now, last_training(instance, config))
    return dg.RunRequest(tags={"ae_pipeline/reason": due.words}) if due.yes else dg.SkipReason(due.words)
