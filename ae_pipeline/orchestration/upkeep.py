"""What a dataset needs now: the questions that its sensors ask, each answered by runs or by a reason for none.

They look at the state and not at what has happened. So nothing is lost when a run fails, a version is promoted while
days are published, or the daemon was down: what is still to be done shows again at the next look.
"""

import datetime as dt
import time
from collections.abc import Mapping, Sequence

import dagster as dg
from filelock import FileLock, Timeout

from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.stages import DATASET_TAG, READ_TAG, REQUEST_TAG
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0
"""Seconds after which what an attempt has not done is tried again: the first time, and at most; each doubles it."""

_SETTLED = 3.0
"""Seconds since a file was last written after which it is read: before, it may still be growing."""

_SILENT = 120.0
"""Seconds without an event after which a run that does not hold its dataset's lock has died."""

_UNSTARTED = 900.0
"""The same of a run whose process has not started to work yet."""

Answer = list[dg.RunRequest] | dg.SkipReason


def landed_work(config: PipelineConfig, workspace: Workspace, instance: dg.DagsterInstance) -> Answer:
    """Asks for new and changed landed files to be read, and for raw_data and features of the days that they change."""
    if busy := why_busy(config, workspace, instance):
        return dg.SkipReason(busy)
    from ae_pipeline.ingestion.landing import unread_files
    from ae_pipeline.lifecycle.pending import days_to_ingest

    paths = workspace.paths(config.dataset)
    unread = unread_files(Dataset(config, paths), dt.datetime.now(dt.UTC).date())
    # A file that is read while it grows is read again once it has; only to look for nothing else is too early.
    if unread and time.time() - min(written for _, written in unread.values()) / 1e9 < _SETTLED:
        return dg.SkipReason(f"{pluralize(len(unread), 'new or changed file')}, still being written")
    waiting = None
    if unread:
        message = f"{pluralize(len(unread), 'new or changed file')}: {abbreviate(sorted(unread))}"
        asked = _requests(config, instance, "intake", {"": message}, hash_json(unread))
        if not isinstance(asked, dg.SkipReason):
            return asked
        waiting = asked  # a file that cannot be read must not hold up the days of those that could
    if not paths.ledger.exists():
        return waiting or dg.SkipReason("nothing has landed so far")
    days = days_to_ingest(Dataset(config, paths))
    if not days:
        return waiting or dg.SkipReason("nothing new: every landed file is read, and every day has its features")
    contract = hash_json(paths.contract.read_text(encoding="utf-8"))
    ledger = hash_json(paths.ledger.read_text(encoding="utf-8"))
    return _ranges(config, instance, "ingest", days, hash_json([contract, ledger]), {READ_TAG: "by a run of its own"})


def stale_work(config: PipelineConfig, workspace: Workspace, instance: dg.DagsterInstance) -> Answer:
    """Asks for latents and reports of the days whose rows are not those that the model that serves would give."""
    if busy := why_busy(config, workspace, instance):
        return dg.SkipReason(busy)
    from ae_pipeline.features.build import features_content
    from ae_pipeline.lifecycle.pending import days_without_report
    from ae_pipeline.lifecycle.promote import undecided_challenger
    from ae_pipeline.registry.names import CHAMPION

    paths, tracker = workspace.paths(config.dataset), workspace.tracker()
    if waiting := undecided_challenger(config, tracker):
        message = f"the decision on version {waiting.version}, which waits for it"
        asked = _requests(config, instance, "decide", {"": message}, waiting.run_id)
        if not isinstance(asked, dg.SkipReason):
            return asked  # otherwise it has failed, which must not hold up the days under the version that serves
    champion = tracker.version(config.dataset, CHAMPION)
    if champion is None:
        return dg.SkipReason("no version serves so far; the first training gives one")
    days = days_without_report(Dataset(config, paths), tracker)
    if not days:
        return dg.SkipReason(f"every day is published and reported on under version {champion.version}")
    content = features_content(Dataset(config, paths))
    state = hash_json([champion.version, champion.run_id, [content.get(day) for day in days]])
    return _ranges(config, instance, "publish", days, state)


def next_training(
    config: PipelineConfig, workspace: Workspace, instance: dg.DagsterInstance
) -> dg.RunRequest | dg.SkipReason:
    """Asks for a training where one is due, and otherwise says why not."""
    filters = dg.RunsFilter(job_name=f"{config.dataset}_train", statuses=ACTIVE)
    why_busy(config, workspace, instance)  # ends a training whose process has died
    if running := instance.get_runs(filters, limit=1):
        return dg.SkipReason(f"a training is running: run {running[0].run_id}")
    from ae_pipeline.features.build import features_content  # polars, which loading the definitions can spare
    from ae_pipeline.orchestration.retraining import Due, is_training_due, last_training

    now, last = features_content(Dataset(config, workspace.paths(config.dataset))), last_training(instance, config)
    due = is_training_due(config, now, last)
    if not due.yes and last is not None and _is_empty(config, workspace):
        due = Due(True, "the model store holds no version")
    if not due.yes:
        return dg.SkipReason(due.message)
    return dg.RunRequest(tags={"ae_pipeline/reason": due.message}, run_config=LOGGERS)


def _is_empty(config: PipelineConfig, workspace: Workspace) -> bool:
    from ae_pipeline.registry.names import CHALLENGER, CHAMPION

    tracker = workspace.tracker()
    return not any(tracker.version(config.dataset, alias) for alias in (CHALLENGER, CHAMPION))


def drift_work(config: PipelineConfig, workspace: Workspace, instance: dg.DagsterInstance) -> Answer:
    """Asks for a training where it would learn from enough drifted days that the last one did not see.

    The gate's days are the newest, and no training sees them: one that began with the first drifted day would change
    nothing, nor would another a day later.
    """
    from ae_pipeline.features.build import features_content
    from ae_pipeline.monitoring.daily_drift import drifting_days
    from ae_pipeline.orchestration.retraining import last_day_learnt, last_training

    wanted, paths = config.retrain.drifting_days or 0, workspace.paths(config.dataset)
    days = drifting_days(paths, config.drift.min_rows)
    if len(days) < wanted:
        return dg.SkipReason(f"{pluralize(len(days), 'day')} in a row have drifted, fewer than drifting_days={wanted}")
    last = last_training(instance, config)
    since = last_day_learnt(config, last.content) if last else ""
    until = last_day_learnt(config, features_content(Dataset(config, paths)))
    learnt = [day for day in days if since < day <= until]
    if len(learnt) < wanted:
        return dg.SkipReason(
            f"{pluralize(len(days), 'day')} in a row have drifted, and a training would learn from {len(learnt)} of "
            f"them that the last one did not, fewer than drifting_days={wanted}: the newest {config.gate.days} are the "
            "gate's"
        )
    due = next_training(config, workspace, instance)
    if isinstance(due, dg.SkipReason):
        return due
    message = f"the newest {pluralize(len(days), 'day')} have drifted; {due.tags['ae_pipeline/reason']}"
    return _requests(config, instance, "train", {"": message}, hash_json(days[-1]))


def why_busy(config: PipelineConfig, workspace: Workspace, instance: dg.DagsterInstance) -> str | None:
    """Names the run of a dataset that is under way, if there is one; ends those whose process has died."""
    filters = dg.RunsFilter(tags={DATASET_TAG: config.dataset}, statuses=ACTIVE)
    for found in instance.get_run_records(filters):
        run = found.dagster_run
        # Where runs have machines of their own, their locks tell nothing here.
        local = instance.is_ephemeral or isinstance(instance.run_launcher, dg.DefaultRunLauncher)
        queued = run.status == dg.DagsterRunStatus.QUEUED
        if local and not queued and _has_died(found, workspace.paths(config.dataset), instance):
            instance.report_run_failed(run, "its process has ended without a word: it holds no lock any more")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            continue
        return f"run {run.run_id} of {run.job_name} is under way ({run.status.value.lower()})"
    return None


def _has_died(found: dg.RunRecord, paths: DatasetPaths, instance: dg.DagsterInstance) -> bool:
    began = found.start_time or found.create_timestamp.timestamp()
    silent = _SILENT if found.dagster_run.status == dg.DagsterRunStatus.STARTED else _UNSTARTED
    if time.time() - began < silent or not paths.lock.exists():
        return False
    try:
        with FileLock(paths.lock).acquire(timeout=0):
            pass
    except Timeout:
        return False
    newest = instance.get_records_for_run(found.dagster_run.run_id, limit=1, ascending=False).records
    return not newest or time.time() - newest[0].timestamp > silent


def _ranges(
    config: PipelineConfig,
    instance: dg.DagsterInstance,
    job: str,
    days: Sequence[str],
    state: str,
    tags: Mapping[str, str] | None = None,
) -> Answer:
    from ae_pipeline.lifecycle.pending import contiguous

    spans: dict[str, Mapping[str, str]] = {}
    for first, last in contiguous(days):
        message = "all rows" if first == ALL_ROWS else first if first == last else f"{first} to {last}"
        spans[message] = {**range_tags(first, last), **(tags or {})}
    return _requests(config, instance, job, {message: message for message in spans}, state, spans)


def range_tags(first: str, last: str) -> dict[str, str]:
    """Gives the tags of a run over days; none where rows have no days."""
    if first == ALL_ROWS:
        return {}
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def _requests(
    config: PipelineConfig,
    instance: dg.DagsterInstance,
    job: str,
    parts: Mapping[str, str],
    state: str,
    tags: Mapping[str, Mapping[str, str]] | None = None,
) -> Answer:
    """Asks for a run of each part, and for one again that has not done what it was to do, after a pause that grows."""
    wanted, waiting = [], []
    for part, message in parts.items():
        key = f"{job} {part} {state}"
        name = f"{config.dataset}_{job}"
        earlier = instance.get_run_records(dg.RunsFilter(job_name=name, tags={REQUEST_TAG: key}), limit=20)
        if earlier:
            last = earlier[0]
            ended = last.end_time or last.update_timestamp.timestamp()
            pause = min(_FIRST_PAUSE * 2 ** (len(earlier) - 1), _LONGEST_PAUSE)
            if time.time() < ended + pause:
                again = dt.datetime.fromtimestamp(ended + pause, dt.UTC)
                run = last.dagster_run
                told = f"run {run.run_id} ended ({run.status.value.lower()}) and left it undone"
                waiting.append(f"{message}: {told}; again at {again:%H:%M:%S} UTC")
                continue
        more = {REQUEST_TAG: key, "ae_pipeline/reason": message, **(tags or {}).get(part, {})}
        # Dagster drops a request whose key it has seen, so each attempt has one of its own.
        run_key = f"{key} after {earlier[0].dagster_run.run_id if earlier else 'none'}"
        wanted.append(dg.RunRequest(run_key=run_key, job_name=name, tags=more, run_config=LOGGERS))
    return wanted or dg.SkipReason("; ".join(waiting))
