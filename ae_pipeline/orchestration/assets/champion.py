"""The asset `champion`: the version that serves, by the gate's decision or a rollback."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import Thread
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import BaseModel, Field, model_validator

from ae_pipeline.common.errors import PipelineError, PromotionError
from ae_pipeline.common.signals import critical_section
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.assets.common import (
    as_dagster_failure,
    check_result,
    dataset_asset,
    origin_of,
)
from ae_pipeline.orchestration.metadata import history_table
from ae_pipeline.orchestration.plain_config import CheckedSchema, LaunchCheck
from ae_pipeline.orchestration.resources import RunLock, Workspace, deployed
from ae_pipeline.orchestration.tags import requested_by

if TYPE_CHECKING:
    from ae_pipeline.lifecycle.promote import Decision
    from ae_pipeline.registry.versions import TrackedVersion
    from ae_pipeline.storage.dataset import Dataset

_LAUNCH_SECONDS = 20.0
"""How long a launch waits for the model store. Dagster ends a call of the code server after a minute."""

_DESCRIPTION = """\
**The model version that serves.** The challenger is promoted if it passes every rule of the gate. A person goes back to
another version with the job rollback. The data version is the model version, so a rejected challenger makes nothing
stale.

The metadata `history` shows which version served since when, who decided it and why."""

_CHECKS = {"can_be_loaded": "The bundle of the version that serves can be loaded."}


class ChampionConfig(BaseModel, frozen=True):
    """Which version shall serve: the gate's decision by default, or a version that a person chooses."""

    version: int | None = Field(
        default=None,
        description="Roll back to this version of the registered model. Leave it out to apply the gate's decision.",
    )
    why: str = Field(default="", description="Reason of a rollback, kept in the history.")
    who: str = Field(default="", description="Your name, kept in the history.")
    even_if_rejected: bool = Field(default=False, description="Allow a version that the gate rejected.")

    @model_validator(mode="after")
    def _require_version_and_reason(self) -> "ChampionConfig":
        if self.version is None:
            return self
        missing = [] if self.version > 0 else [f"there is no version {self.version}; choose a registered version"]
        missing += [] if self.why.strip() else ["a rollback needs a reason, which the history keeps; set why"]
        if missing:
            raise ValueError(". ".join(missing))
        return self


def build_champion(pipeline: PipelineConfig) -> dg.AssetsDefinition:
    """Build the asset of a dataset."""

    @dataset_asset(
        pipeline,
        "champion",
        description=_DESCRIPTION,
        checks=_CHECKS,
        kinds={"mlflow"},
        upstream=["autoencoder"],
        config_schema=CheckedSchema(ChampionConfig, _launch_check(pipeline), pipeline.dataset),
    )
    def champion(context: dg.AssetExecutionContext, workspace: Workspace, run_lock: RunLock) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from ae_pipeline.lifecycle.publish import load_champion
        from ae_pipeline.orchestration.cancelled import withdraw_cancelled_challenger
        from ae_pipeline.registry.bundles import load_bundle
        from ae_pipeline.reports.page import refresh_operations

        config = ChampionConfig.model_validate(context.op_execution_context.op_config)
        dataset, tracker = workspace.dataset(pipeline), workspace.tracker()
        signals: list[int] = []
        with as_dagster_failure(), ExitStack() as stack:

            def confirm(promoted: "TrackedVersion") -> None:
                nonlocal signals
                load_bundle(tracker, promoted, "cpu")  # a version that cannot be loaded must not serve
                signals = stack.enter_context(critical_section())
                run_lock.require_active()

            withdraw_cancelled_challenger(dataset, tracker, context.instance)
            decision = _decide(context, config, dataset, workspace, run_lock, confirm)
            refresh_operations(dataset)
            version, bundle = load_champion(dataset.name, tracker)
            if signals:
                context.log.info("the run was asked to stop after the promotion, which stays; this step ends first")
                signals.clear()
        context.log.info(decision.message)
        loaded = f"version {version.version}, fingerprint {bundle.fingerprint}, {len(bundle.columns)} columns"
        return dg.MaterializeResult(
            metadata={
                "model_version": version.version,
                "mlflow_run": version.run_id,
                "mlflow": dg.MetadataValue.url(workspace.model_version_url(dataset.name, version.version)),
                "decision": decision.message,
                "promoted": decision.promoted,
                "history": history_table(dataset.paths),
                "fingerprint": bundle.fingerprint,
                "dagster/uri": tracker.bundle_uri(version),
            },
            data_version=dg.DataVersion(str(version.version)),
            check_results=[
                check_result(context, "can_be_loaded", version.version == decision.champion.version, loaded)
            ],
        )

    return champion


def _launch_check(pipeline: PipelineConfig) -> LaunchCheck | None:
    """Return the check of a rollback against the model store, before its run starts; None without a deployment."""
    workspace = deployed.get()
    if workspace is None:
        return None

    def refusal_of(values: Mapping[str, Any], refusal: str) -> str:
        if values["version"] is None:
            return refusal
        answers: list[str] = []
        asking = Thread(target=lambda: answers.append(checked(values, refusal)), name="launch_check", daemon=True)
        asking.start()
        asking.join(_LAUNCH_SECONDS)
        return answers[0] if answers else refusal  # without an answer the run checks

    def checked(values: Mapping[str, Any], refusal: str) -> str:
        from ae_pipeline.lifecycle.promote import RollbackRequest, rollback_target
        from ae_pipeline.lifecycle.versions import describe_versions

        names = ("version", "why", "who", "even_if_rejected")
        dataset, tracker = workspace.dataset(pipeline), workspace.tracker()
        try:
            if not refusal:
                rollback_target(dataset, tracker, RollbackRequest(**{name: values[name] for name in names}))
                return ""
            return f"{refusal}. {describe_versions(dataset, tracker)}"
        except PromotionError as error:
            return f"{error}. {describe_versions(dataset, tracker)}"
        except PipelineError as error:
            return f"{refusal}. {error}" if refusal else str(error)

    return refusal_of


def _decide(
    context: dg.AssetExecutionContext,
    config: ChampionConfig,
    dataset: "Dataset",
    workspace: Workspace,
    run_lock: RunLock,
    confirm: Callable[["TrackedVersion"], None],
) -> "Decision":
    from ae_pipeline.lifecycle.alerts import raise_and_show
    from ae_pipeline.lifecycle.promote import Decision, RollbackRequest, decide, roll_back
    from ae_pipeline.monitoring.alerts import Alert, AlertEvent

    tracker = workspace.tracker()
    who, origin = config.who or requested_by(context.run.tags), origin_of(context)
    if config.version is not None:
        request = RollbackRequest(
            version=config.version, why=config.why, who=who, even_if_rejected=config.even_if_rejected
        )
        rollback = roll_back(dataset, tracker, request, origin, run_lock.require_active)
        return Decision(rollback.version, False, rollback.message)

    def on_rejected(challenger: "TrackedVersion", message: str) -> None:
        key = f"version {challenger.version} of run {challenger.run_id}"
        message = f"{message}. Look at the checks of autoencoder."
        alert = Alert(event=AlertEvent.CHALLENGER_REJECTED, key=key, message=message, run_id=context.run.run_id)
        raise_and_show(alert, dataset)

    return decide(dataset, tracker, who, origin, on_rejected, confirm)
