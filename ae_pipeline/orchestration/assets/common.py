"""What all assets of a dataset have in common: keys, partitions, options, check results, failures."""

import datetime as dt
import errno
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import dagster as dg

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.common.escape import without_html
from ae_pipeline.common.text import first_line
from ae_pipeline.config.days import check_days
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.side_by_side import pool_of
from ae_pipeline.orchestration.tags import PLANNED_TAG, named_days
from ae_pipeline.storage.environment import environment_error
from ae_pipeline.storage.paths import ALL_ROWS

if TYPE_CHECKING:
    from ae_pipeline.storage.dataset import Dataset

CODE_VERSION = "1"
"""Raised when the result of an asset would change."""


DAYS_DESCRIPTION = "Partitions are days from midnight to midnight in the time zone {timezone}."


def asset_key(config: PipelineConfig, asset: str) -> dg.AssetKey:
    """Return the key [dataset, asset]."""
    return dg.AssetKey([config.dataset, asset])


_RETRY_SECONDS = 5.0
"""Time after which a step is retried."""

_TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of the system that may pass by themselves."""

AssetBody = Callable[..., dg.MaterializeResult[Any]]


def dataset_asset(
    config: PipelineConfig,
    name: str,
    *,
    description: str,
    checks: Mapping[str, str],
    kinds: set[str],
    upstream: Sequence[str] = (),
    daily: bool = False,
    freshness_policy: dg.FreshnessPolicy | None = None,
    config_schema: dg.Shape | None = None,
) -> Callable[[AssetBody], dg.AssetsDefinition]:
    """Return `dg.asset` with the options that all assets of a dataset share.

    Args:
        config: Configuration of the dataset.
        name: Name of the asset.
        description: What the asset is.
        checks: Description of each asset check, by name.
        kinds: Kinds that the UI shows as icons.
        upstream: Names of the assets that it is made from.
        daily: Whether it has the partitions of the dataset; one run then builds many days.
        freshness_policy: When the asset counts as stale.
        config_schema: Schema of its run config.
    """
    key = asset_key(config, name)
    if daily and config.is_daily:
        description = f"{description}\n\n{DAYS_DESCRIPTION.format(timezone=config.timezone)}"
    options: dict[str, Any] = {
        "key": key,
        "group_name": config.dataset,
        "description": f"{description}\n\n{without_html(config.description)}".strip(),
        "owners": list(config.owners) or None,
        "kinds": kinds,
        "deps": [asset_key(config, each) for each in upstream],
        "pool": pool_of(config, name),
        "code_version": CODE_VERSION,
        "freshness_policy": freshness_policy,
        "config_schema": config_schema,
        "check_specs": [dg.AssetCheckSpec(check, asset=key, description=rule) for check, rule in checks.items()],
    }
    if daily:
        longest = config.scale.days_per_run  # the same for all assets, because Dagster wants one policy for a job
        policy = dg.BackfillPolicy.multi_run(longest) if longest else dg.BackfillPolicy.single_run()
        options |= {"partitions_def": daily_partitions(config), "backfill_policy": policy}
    decorator: Callable[[AssetBody], dg.AssetsDefinition] = dg.asset(**options)
    return lambda body: decorator(_saving(body, config.dataset))


def _saving(body: AssetBody, dataset: str) -> AssetBody:
    """Return the body of an asset that saves the state of the dataset at its end, so that a failure fails the step."""

    @wraps(body)
    def saved(*arguments: Any, **resources: Any) -> "dg.MaterializeResult[Any]":
        result = body(*arguments, **resources)
        with as_dagster_failure():
            resources["workspace"].save(dataset)
        return result

    return saved


def daily_partitions(config: PipelineConfig) -> dg.DailyPartitionsDefinition | None:
    """Return the days of the dataset in its time zone; None without event time."""
    if config.start is None:
        return None
    after = config.end + dt.timedelta(days=1) if config.end else None
    return dg.DailyPartitionsDefinition(
        start_date=config.start.isoformat(),
        end_date=after.isoformat() if after else None,
        end_offset=1,  # today's partition exists while the day lasts, so that it can be scored as it fills
        timezone=config.timezone,
    )


def days_of(context: dg.AssetExecutionContext, dataset: "Dataset") -> list[str]:
    """Return the partitions of a run in order, or `ALL_ROWS` for a dataset without event time.

    A range that the planner chose can span days without content, which are left out.

    Raises:
        dagster.Failure: The run names no day of a dataset with event time, or a day outside its days.
    """
    from ae_pipeline.lifecycle.ranges import days_with_content

    if not dataset.config.is_daily:
        return [ALL_ROWS]
    with as_dagster_failure():
        check_days(named_days(context.run.tags), dataset.config)
    days = sorted(context.partition_keys)
    if PLANNED_TAG not in context.run.tags:
        return days
    content = days_with_content(dataset)
    return [day for day in days if day in content] or days


def origin_of(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Return the run that a result comes from. A retried run counts as the run that it retries."""
    run_id = context.run.root_run_id or context.run.run_id
    return {"dagster_run_id": run_id, "dagster_asset": context.asset_key.to_user_string()}


@contextmanager
def as_dagster_failure() -> Iterator[None]:
    """Turn our errors into Dagster failures, and request a retry of a step where the error may pass by itself.

    A retry policy would do the latter for interrupts as well, so that a cancelled step started again. Interrupts pass
    unchanged.

    Raises:
        Failure: The same input would fail again.
        RetryRequested: A resource was busy, and the step did not run again so far.
    """
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except Exception as error:
        known = environment_error(error)
        if is_transient(error):
            described = str(known) if known else f"{type(error).__name__}: {first_line(error)}; run it again"
            # Dagster shows the failure that a request comes from if the last attempt fails too.
            raise dg.RetryRequested(max_retries=1, seconds_to_wait=_RETRY_SECONDS) from dg.Failure(described)
        if known is None:
            raise
        raise dg.Failure(description=str(known), allow_retries=False) from error


def is_transient(error: BaseException) -> bool:
    """Return whether an error may pass by itself: a busy database, no free file handle, or a lost connection.

    Args:
        error: Error of a step. An error that it was raised from counts too.
    """
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, ConnectionError | TimeoutError):
            return True
        if isinstance(each, OSError) and each.errno in _TRANSIENT:
            return True
        if isinstance(each, sqlite3.OperationalError) and ("locked" in str(each) or "busy" in str(each)):
            return True
        each = each.__cause__ or each.__context__
    return False


def check_result(
    context: dg.AssetExecutionContext,
    name: str,
    passed: bool,
    message: str,
    *,
    figure: float | None = None,
    threshold: float | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """Return the result of a check of the running asset.

    Args:
        context: Context of the asset.
        name: Name of the check.
        passed: Whether the rule holds.
        message: What was found.
        figure: What was measured.
        threshold: What the figure was compared with.
        severity: Severity of a broken rule. No check stops the run, because valid rows must be processed.
    """
    values = {"figure": figure, "threshold": threshold}
    return dg.AssetCheckResult(
        asset_key=context.asset_key,
        check_name=name,
        passed=bool(passed),
        severity=severity,
        description=message,
        metadata={name: float(value) for name, value in values.items() if value is not None},
    )
