"""Jobs of a dataset."""

from typing import Any
from urllib.parse import quote

import dagster as dg
from pydantic import BaseModel, Field

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.monitoring.feedback import MarkKind, MarkState
from ae_pipeline.orchestration.assets.champion import ChampionConfig
from ae_pipeline.orchestration.assets.common import as_dagster_failure, asset_key
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.plain_config import CheckedSchema
from ae_pipeline.orchestration.resources import RunLock, Workspace, deployed
from ae_pipeline.orchestration.tags import DATASET_TAG, PERSON_PRIORITY, PRIORITY_TAG, accepts_removal

ASSET_JOBS = {
    "ingest": (("raw_data", "features"), "Read what has landed, and build raw_data and features of a range of days."),
    "train": (
        ("autoencoder", "champion"),
        "Train on the newest window, and promote the model if it passes the gate.",
    ),
    "publish": (
        ("latent_features", "anomaly_report"),
        "Score and publish a range of days under the champion, and report on them.",
    ),
    "decide": (
        ("champion",),
        "Promote a trained model if it passed the gate: the rest of an interrupted training.",
    ),
    "day": (
        ("raw_data", "features", "latent_features", "anomaly_report"),
        "All that a new day needs under the model that serves. Training is a job of its own.",
    ),
}
"""Jobs over the assets of a dataset, by the end of their names: assets and description."""

RETRY_TAGS = {
    # A run whose process was killed runs again. What the retry of a step did not cure would only fail again.
    "dagster/max_retries": "1",
    "dagster/retry_on_asset_or_op_failure": "false",
}


def job_name(config: PipelineConfig, job: str) -> str:
    """Return the name of a job of a dataset."""
    return f"{config.dataset}_{job}"


def build_jobs(config: PipelineConfig) -> dict[str, Any]:
    """Return the jobs of a dataset, by the end of their names."""
    jobs: dict[str, Any] = {
        job: dg.define_asset_job(
            job_name(config, job),
            selection=dg.AssetSelection.assets(*(asset_key(config, asset) for asset in assets)),
            description=description,
            tags={DATASET_TAG: config.dataset, **RETRY_TAGS},
            config=LOGGERS,
        )
        for job, (assets, description) in ASSET_JOBS.items()
    }
    return {**jobs, "intake": _intake_job(config), "rollback": _rollback_job(config), "mark": _mark_job(config)}


def _intake_job(config: PipelineConfig) -> dg.JobDefinition:
    @dg.op(
        name=f"{config.dataset}__read_landed",
        description="Read every new or changed landed file into its staged copy. The ledger then lists its days.",
        pool=config.dataset,
    )
    def read_landed(context: dg.OpExecutionContext, workspace: Workspace, run_lock: RunLock) -> None:
        from ae_pipeline.lifecycle.ingest import read_landed_files
        from ae_pipeline.orchestration.failures import alert_key

        with as_dagster_failure():
            read_landed_files(
                workspace.dataset(config),
                alert_key(context.run),
                context.run_id,
                accepts_removal=accepts_removal(context.run.tags),
            )
            workspace.save(config.dataset)

    @dg.job(
        name=job_name(config, "intake"),
        description="Read new and changed landed files. Afterwards it is known which days they change.",
        tags={DATASET_TAG: config.dataset, **RETRY_TAGS},
    )
    def intake() -> None:
        read_landed()

    return intake


class MarkConfig(BaseModel, frozen=True):
    """What a person says, as the launchpad asks for it."""

    kind: MarkKind = Field(description="What the mark is about: row, cause or day.")
    subject: str = Field(
        min_length=1, description="Identity of a flagged row, columns of a cause joined by +, or ISO date."
    )
    state: MarkState = Field(description="What it is: real, known, false_alarm or cleared.")
    day: str = Field(default="", description="Day of the cause; empty for its rows on all days.")
    entity: str = Field(default="", description="Restricts a cause to one entity; empty for all.")
    note: str = Field(default="", description="Remark.")
    who: str = Field(min_length=1, description="Person.")


def _mark_job(pipeline: PipelineConfig) -> dg.JobDefinition:
    @dg.op(
        name=f"{pipeline.dataset}__mark",
        description="Store what a person says about a flagged row, a cause or a day, and show it in the report.",
        pool=pipeline.dataset,
        config_schema=CheckedSchema(MarkConfig),
    )
    def store_mark(context: dg.OpExecutionContext, workspace: Workspace, run_lock: RunLock) -> None:
        from ae_pipeline.lifecycle.feedback import mark_within_run
        from ae_pipeline.reports.review import MarkRequest, offer_after

        with as_dagster_failure():
            request = MarkRequest(**MarkConfig.model_validate(context.op_config).model_dump())
            dataset = workspace.dataset(pipeline)
            stored = mark_within_run(request, dataset)
            offer = offer_after(stored, dataset)
            workspace.save(pipeline.dataset)
        context.log.info(f"{stored.kind} {stored.subject}: marked as {stored.state.text} by {stored.who}")
        if offer:
            context.log.info(offer.message)

    @dg.job(
        name=job_name(pipeline, "mark"),
        description="Say that a flagged row, a cause or a day of the report is real, known, or a false alarm.",
        tags={DATASET_TAG: pipeline.dataset, PRIORITY_TAG: PERSON_PRIORITY},
    )
    def mark() -> None:
        store_mark()

    return mark


def _rollback_job(config: PipelineConfig) -> Any:
    workspace = deployed.get()
    page = f"{workspace.data_url.rstrip('/')}/versions/{quote(config.dataset)}" if workspace else ""
    return dg.define_asset_job(
        job_name(config, "rollback"),
        selection=dg.AssetSelection.assets(asset_key(config, "champion")),
        description="Let another version of the model serve. Days that landed since are scored under it first. Then "
        "alias and latent table move together, and the reports follow."
        + (
            f" [Versions]({page}): windows, gate, figures and history. A launch without one lists them." if page else ""
        ),
        tags={DATASET_TAG: config.dataset, PRIORITY_TAG: PERSON_PRIORITY},
        # The launchpad shows this first. It is refused until a version that can serve and a reason are set. The refusal
        # lists the versions.
        config=rollback_run_config(config, ChampionConfig.model_construct(version=0)),
    )


def rollback_run_config(config: PipelineConfig, champion: ChampionConfig) -> dict[str, Any]:
    """Return the run config of a rollback."""
    op = asset_key(config, "champion").to_python_identifier()
    return {"ops": {op: {"config": champion.model_dump()}}, **LOGGERS}
