"""The schedule that retrains a dataset."""

from typing import TYPE_CHECKING

import dagster as dg

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.jobs import job_name
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.runs import active_training
from ae_pipeline.orchestration.tags import REASON_TAG

if TYPE_CHECKING:
    from ae_pipeline.storage.dataset import Dataset


def build_retraining_schedule(config: PipelineConfig) -> dg.ScheduleDefinition:
    """Build the schedule of a dataset; it is stopped until somebody starts it."""

    @dg.schedule(
        name=f"{config.dataset}_retrain",
        cron_schedule=config.retrain.cron,
        execution_timezone=config.timezone,
        job_name=job_name(config, "train"),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Train when enough new rows came since the last training; otherwise skip and say why.",
    )
    def retrain(
        context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.RunRequest | dg.SkipReason:
        workspace.refresh(config.dataset)
        return training_request(workspace.dataset(config), workspace, context.instance)

    return retrain


def training_request(
    dataset: "Dataset", workspace: Workspace, instance: dg.DagsterInstance
) -> dg.RunRequest | dg.SkipReason:
    """Request a training if one is due, or return why not."""
    if active := active_training(dataset, workspace, instance):
        return dg.SkipReason(active)
    from ae_pipeline.lifecycle.plan import plan_training

    plan = plan_training(dataset, workspace.tracker())
    if not plan.work:
        return dg.SkipReason(plan.idle)
    return dg.RunRequest(tags={REASON_TAG: plan.work[0].reason}, run_config=LOGGERS)
