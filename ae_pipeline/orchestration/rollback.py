"""Rollback: lets another version serve, and moves its table with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
from pydantic import Field

from ae_pipeline.common.errors import PromotionError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.metadata import history_table
from ae_pipeline.orchestration.stages import CODE_VERSION, DATASET_TAG, as_dagster_failure, asset_key, who_asked
from ae_pipeline.storage.dataset import Dataset

if TYPE_CHECKING:
    from ae_pipeline.latents.publish import Progress, Publication
    from ae_pipeline.orchestration.resources import Workspace
    from ae_pipeline.registry.store import Tracker


class RollbackConfig(dg.Config):
    """What a person asks for."""

    version: int = Field(description="Version of the registered model that is to serve.")
    why: str = Field(description="Kept in the history.")
    who: str = Field(default="", description="Kept in the history; say who you are.")
    even_if_rejected: bool = Field(
        default=False, description="A version that the gate has rejected serves only where this is true."
    )


@dataclass(frozen=True)
class RolledBack:
    """What a rollback came to.

    Attributes:
        version: Which serves.
        previous: Which did until then; the same where a rollback that was cut short is completed.
        publication: Of its table.
        message: The same for a person.
    """

    version: int
    previous: int | None
    publication: "Publication"
    message: str


def roll_back(
    dataset: Dataset,
    tracker: "Tracker",
    asked: RollbackConfig,
    origin: Mapping[str, str],
    progress: "Progress" = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> RolledBack:
    """Lets a version serve: scores all days that it lacks, also those landed since, then moves alias and table.

    Both move at the end, one right after the other, once every row is written and nothing is left to fail but the
    commit itself. Should that happen, the days are published under the version that serves by whoever publishes next.

    Args:
        dataset: Configuration and paths of the dataset.
        tracker: The model store.
        asked: Which version, why, and on whose behalf.
        origin: Runs that this comes from.
        progress: Told while it works.
        say: Told what is done.

    Raises:
        PromotionError: There is no such version, the gate has rejected it, or no reason is given.
        StorageError: Its bundle is gone.
        BundleError: Its bundle cannot be read, or not score the features that there are now.
    """
    config, paths = dataset.config, dataset.paths
    from ae_pipeline.common.timestamps import now
    from ae_pipeline.detector.bundle import ModelBundle
    from ae_pipeline.features.build import features_content
    from ae_pipeline.latents.publish import publish
    from ae_pipeline.lifecycle.promote import DECIDED, RUN, figures_of
    from ae_pipeline.registry.history import Change, Entry, history, record
    from ae_pipeline.registry.names import CHALLENGER, CHAMPION, GATE_TAG

    if not asked.why.strip():
        raise PromotionError("a rollback needs a reason, which the history keeps; give it as why")
    there = {version.version: version for version in tracker.versions(config.dataset)}
    if asked.version not in there:
        raise PromotionError(
            f"{config.dataset!r} has no version {asked.version} that could serve; choose among "
            f"{', '.join(map(str, sorted(there))) or 'none: train one first'}"
        )
    target = there[asked.version]
    gate = target.tags.get(GATE_TAG, "rejected: it was never judged")
    if gate != "passed" and not asked.even_if_rejected:
        raise PromotionError(
            f"version {target.version} of {config.dataset!r} was {gate}; choose another, or give even_if_rejected"
        )
    bundle = ModelBundle.load(tracker.bundle_folder(target))
    serving = tracker.version(config.dataset, CHAMPION)
    previous = serving.version if serving else None

    def move() -> None:
        served = [entry for entry in history(paths) if entry.change != Change.REJECTED]
        # Where the history says otherwise, a rollback was cut short between the alias and its entry: it is told now.
        if previous == target.version and served and served[-1].version == target.version:
            return
        challenger = tracker.version(config.dataset, CHALLENGER)
        if challenger is not None and DECIDED not in challenger.tags:
            # One that waits for its decision must not undo this one.
            chosen = "chosen" if challenger.version == target.version else "passed over"
            tracker.tag_version(config.dataset, challenger.version, {DECIDED: f"{chosen} by a rollback"})
        tracker.set_alias(config.dataset, CHAMPION, target.version)
        last = previous if previous != target.version else served[-1].version if served else None
        figures, runs = figures_of(target), {**origin, RUN: target.run_id}
        record(paths, Entry(now(), Change.ROLLED_BACK, target.version, last, asked.who, asked.why, figures, runs))
        say(f"version {target.version} serves in place of version {last}")

    days = list(features_content(dataset))
    facts = {**origin, RUN: target.run_id}
    done = publish(days, dataset, bundle, target.version, facts, progress, before_commit=move)
    built = sum(day.built for day in done.days)
    message = (
        f"version {target.version} serves; {pluralize(len(done.days), 'day')} of its table, {built:,} scored now, "
        f"{'in table version ' + str(done.table_version) if done.committed else 'stood so before'}"
    )
    return RolledBack(target.version, previous, done, message)


def build_rollback_job(pipeline: PipelineConfig) -> dg.JobDefinition:
    """Builds the job that a person starts in the UI, or by `ae-pipeline rollback`."""

    @dg.op(
        name=op_name(pipeline),
        description="Lets another version serve: its alias and its table move together.",
        required_resource_keys={"workspace", f"{pipeline.dataset}_lock"},
        pool=pipeline.dataset,
    )
    def op(context: dg.OpExecutionContext, config: RollbackConfig) -> None:
        workspace: Workspace = context.resources.workspace
        paths, tracker = workspace.paths(pipeline.dataset), workspace.tracker()
        asked = config.model_copy(update={"who": config.who or who_asked(context.run.tags)})
        origin = {"dagster_run_id": context.run.root_run_id or context.run.run_id}
        with as_dagster_failure():
            done = roll_back(
                Dataset(pipeline, paths), tracker, asked, origin, ProgressLogger(context.log.info), context.log.info
            )
        context.log.info(done.message)
        from ae_pipeline.reports.page import refresh_operations

        refresh_operations(paths, pipeline.drift.min_rows)
        _tell(context, Dataset(pipeline, paths), done)

    return _job_of(pipeline, op)


def op_name(config: PipelineConfig) -> str:
    """Names the op, whose config says which version."""
    return f"{config.dataset}_roll_back"


def rollback_config(config: PipelineConfig, asked: RollbackConfig) -> dict[str, Any]:
    """Gives the run config of a rollback."""
    return {"ops": {op_name(config): {"config": asked.model_dump()}}, **LOGGERS}


def _job_of(config: PipelineConfig, op: dg.OpDefinition) -> dg.JobDefinition:
    @dg.job(
        name=f"{config.dataset}_rollback",
        description="Lets another version of the model serve. Days landed since are added under it first; then alias "
        "and latent table move together, and the reports follow.",
        tags={DATASET_TAG: config.dataset},
        # What the launchpad shows first: there is no version 0, so that nobody rolls back without a choice.
        config=rollback_config(config, RollbackConfig(version=0, why="")),
    )
    def job() -> None:
        op()

    return job


def _tell(context: dg.OpExecutionContext, dataset: Dataset, done: RolledBack) -> None:
    """Tells Dagster what the rollback made, as runs of the assets would: versions of the data and of their inputs."""
    config, paths = dataset.config, dataset.paths
    instance, by_day = context.instance, config.is_daily
    autoencoder, champion, features, latents = (
        asset_key(config, name) for name in ("autoencoder", "champion", "features", "latent_features")
    )
    facts: dict[str, Any] = {
        "model_version": done.version,
        "decision": done.message,
        "promoted": False,
        "history": history_table(paths),
    }
    trained = _newest(instance, autoencoder, by_day=False)
    tags = _tags(str(done.version), {autoencoder: trained.get(None)})
    context.log_event(dg.AssetMaterialization(champion, metadata=facts, tags=tags))
    serving, made = _newest(instance, champion, by_day=False), _newest(instance, features, by_day)
    for day in done.publication.days:
        partition = day.day if by_day else None
        tags = _tags(
            f"{done.publication.latent_space}/{day.key}",
            {champion: serving.get(None), features: made.get(partition)},
        )
        told = {
            "dagster/partition_row_count" if partition else "dagster/row_count": day.rows,
            "rows_flagged": day.flagged,
            "model_version": done.version,
            "table_version": done.publication.table_version,
        }
        context.log_event(dg.AssetMaterialization(latents, partition=partition, metadata=told, tags=tags))


class _Event(NamedTuple):
    """A materialization: its data version, and its place in the log."""

    version: str
    storage_id: int


def _tags(version: str, inputs: Mapping[dg.AssetKey, _Event | None]) -> dict[str, str]:
    told = {"dagster/data_version": version, "dagster/data_version_is_user_provided": "true"}
    told["dagster/code_version"] = CODE_VERSION
    for key, event in inputs.items():
        if event is not None:
            told[f"dagster/input_data_version/{key.to_user_string()}"] = event.version
            told[f"dagster/input_event_pointer/{key.to_user_string()}"] = str(event.storage_id)
    return told


def _newest(instance: dg.DagsterInstance, key: dg.AssetKey, by_day: bool) -> dict[str | None, _Event]:
    """Gives the newest materialization of an asset by partition; of one without any by None."""
    tag = "dagster/data_version"
    if by_day:
        log, kind = instance.event_log_storage, dg.DagsterEventType.ASSET_MATERIALIZATION
        places = log.get_latest_storage_id_by_partition(key, kind)
        versions = log.get_latest_tags_by_partition(key, kind, [tag])
        return {day: _Event(versions.get(day, {}).get(tag, ""), storage_id) for day, storage_id in places.items()}
    records = instance.fetch_materializations(key, limit=1).records
    made, storage_id = (records[0].asset_materialization, records[0].storage_id) if records else (None, 0)
    return dict.fromkeys([None], _Event((made.tags or {}).get(tag, ""), storage_id)) if made else {}
