"""What a dataset needs next: the only place that decides it.

The sensors, the schedule, and `ae-pipeline run` all ask this module. A plan depends on the state of the dataset, not on
past events. So a failed run, a killed process, or a stopped daemon loses no work: the next look finds it again.
"""

import datetime as dt
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from ae_pipeline.common.errors import BundleError, StorageError
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.config.days import has_come
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.build import features_content
from ae_pipeline.features.sizes import gate_size
from ae_pipeline.ingestion.fetch import days_to_fetch, describe_source, last_fetch
from ae_pipeline.ingestion.landing import Landing, idle_landing, unhandled_deletions, unread_files
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.images import has_images
from ae_pipeline.latents.publish import stale_days
from ae_pipeline.latents.read import published_days
from ae_pipeline.lifecycle.newest_day import day_that_filled, newest_filling_day
from ae_pipeline.lifecycle.pending_days import days_to_ingest
from ae_pipeline.lifecycle.promote import undecided_challenger
from ae_pipeline.lifecycle.ranges import contiguous, cut_at_months, days_with_content, range_name
from ae_pipeline.monitoring.daily_drift import drifting_days
from ae_pipeline.monitoring.feedback import marks_digest
from ae_pipeline.registry.bundles import verified_folder
from ae_pipeline.registry.digests import digest_tags
from ae_pipeline.registry.names import CHALLENGER, CHAMPION, GATE_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.registry.window import window_content
from ae_pipeline.reports.page import is_current
from ae_pipeline.reports.ranking import cut_short, is_reported
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.paths import ALL_ROWS

Content = Mapping[str, tuple[str, int]]
"""Content hash and number of rows of each day of features."""


class Step(StrEnum):
    """A step of a dataset's life cycle. The value ends the name of the job that does it."""

    READ = "intake"
    INGEST = "ingest"
    TRAIN = "train"
    DECIDE = "decide"
    PUBLISH = "publish"


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work that a dataset needs now.

    Attributes:
        step: Step to run.
        days: Days to run it for, sorted; empty for a step that works on the whole dataset.
        reason: Why, for a person.
        state: Hash of the state that calls for the work. While it stays the same, the work was not done.
        ranges: First and last day of each range that a run materializes; it can span days without content.
    """

    step: Step
    days: tuple[str, ...] = ()
    reason: str
    state: str
    ranges: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Work that a dataset needs now, the most urgent first.

    Attributes:
        work: The work; empty where nothing is to do.
        idle: Why nothing is to do, for a person.
    """

    work: tuple[Work, ...]
    idle: str = ""


def plan_landing(
    dataset: Dataset, today: dt.date, settle_seconds: float = 0.0, fetched_since: dt.datetime | None = None
) -> Plan:
    """Plan to fetch and read new and changed landed files, and to ingest the days that they change.

    Args:
        dataset: Dataset to look at.
        today: Last day whose rows are accepted, unless the configuration names one.
        settle_seconds: Age of the oldest unread file from which files are read, because they may still grow.
        fetched_since: Time from which a fetch counts as new enough; by default `source.check_minutes` ago.
    """
    landing = Landing(dataset)
    unread, deleted = unread_files(dataset, today, landing), unhandled_deletions(dataset, landing)
    due = days_to_fetch(dataset, dt.datetime.now(dt.UTC), fetched_since)
    changed = pluralize(len(unread), "new or changed file")
    if unread and time.time() - min(written for _, written in unread.values()) / 1e9 < settle_seconds:
        return Plan((), still_being_written(unread))
    if deleted and time.time() - max(deleted.values()) / 1e9 < settle_seconds:
        return Plan((), f"{pluralize(len(deleted), 'deleted file')}, which may land again")
    work = []
    reasons = [f"{changed}: {abbreviate(sorted(unread))}"] if unread else []
    reasons += [f"{pluralize(len(deleted), 'deleted file')}: {abbreviate(sorted(deleted))}"] if deleted else []
    if due:
        what = "all rows" if due == [ALL_ROWS] else pluralize(len(due), "day")
        reasons.append(f"{what} to fetch with {describe_source(dataset.config)}")
    if reasons:
        extra = [*([sorted(deleted)] if deleted else []), *([last_fetch(dataset)] if due else [])]
        state = hash_json([unread, *extra] if extra else unread)
        work.append(Work(step=Step.READ, reason="; ".join(reasons), state=state))
    if not dataset.paths.ledger.exists():
        return Plan(tuple(work), "nothing has landed so far")
    if days := days_to_ingest(dataset, landing):
        paths = dataset.paths
        state = hash_json([hash_json(path.read_text(encoding="utf-8")) for path in (paths.contract, paths.ledger)])
        work.append(_work_on_days(Step.INGEST, days, state, dataset))
    idle = "every landed file is read, and every day has its features"
    return Plan(tuple(work), idle_landing(dataset, landing) or idle)


def still_being_written(unread: Collection[str]) -> str:
    """Return why nothing is to do although there are unread files: they may still grow."""
    return f"{pluralize(len(unread), 'new or changed file')}, still being written"


def plan_training(dataset: Dataset, tracker: Tracker) -> Plan:
    """Plan a training if the features or the settings have changed enough since the last training."""
    config, content = dataset.config, features_content(dataset)
    if not any(rows for _, rows in content.values()):
        return Plan((), "there are no features yet; materialize raw_data and features first")
    last = last_training(config, tracker)
    state = hash_json([content, settings_hash(config), last.version if last else None])

    def training(reason: str) -> Plan:
        return Plan((Work(step=Step.TRAIN, reason=reason, state=state),))

    if last is None:
        return training("no model was trained so far")
    if unusable := _unusable_champion(config, tracker):
        return training(unusable)
    if last.settings is None:
        return training(f"the bundle of version {last.version} cannot be read")
    if last.settings != settings_hash(config):
        return training(
            "the settings of model, training, alert budget, time zone, or columns changed since the last training"
        )
    changed = [day for day, (digest, _) in content.items() if last.content.get(day, ("", 0))[0] != digest]
    rows = sum(content[day][1] for day in changed)
    noun = noun_of_rows(config)
    if not changed:
        whole = (
            pluralize(len(content), "day") if config.is_daily else pluralize(sum(n for _, n in content.values()), noun)
        )
        return Plan(
            (), f"nothing new: all {whole} are the same as in the last training{_without_champion(dataset, tracker)}"
        )
    where = f"on {pluralize(len(changed), 'new or changed day')}" if config.is_daily else "with new or changed ones"
    reason = f"{pluralize(rows, noun)} {where} since the last training"
    if rows < config.retrain.min_new_rows:
        few = f"{reason}, fewer than min_new_rows={config.retrain.min_new_rows:,}"
        return Plan((), f"{few}{_without_champion(dataset, tracker)}")
    return training(reason)


def plan_early_training(dataset: Dataset, tracker: Tracker) -> Plan:
    """Plan a training before the next scheduled one if enough drifted days are new to a training.

    The newest `gate.days` days do not count, because no training sees them.
    """
    config = dataset.config
    required = config.retrain.drifting_days or 0
    filling = newest_filling_day(dataset)
    days = drifting_days(dataset.paths, config.drift.min_rows, filling.day if filling else "")
    in_a_row = f"{pluralize(len(days), 'day')} in a row {'has' if len(days) == 1 else 'have'} drifted"
    if len(days) < required:
        return Plan((), f"{in_a_row}, fewer than drifting_days={required}")
    last = last_training(config, tracker)
    since = last_training_day(config, last.content) if last else ""
    until = last_training_day(config, features_content(dataset))
    new = [day for day in days if since < day <= until]
    if len(new) < required:
        return Plan(
            (),
            f"{in_a_row}; {len(new)} of them are new to a training, fewer than drifting_days={required}: the newest "
            f"{_gate_size(config, features_content(dataset))} belong to the gate",
        )
    plan = plan_training(dataset, tracker)
    work = tuple(
        Work(step=Step.TRAIN, reason=f"{in_a_row}; {each.reason}", state=hash_json(days[-1])) for each in plan.work
    )
    return Plan(work, plan.idle)


def plan_serving(dataset: Dataset, tracker: Tracker) -> Plan:
    """Plan the decision on a challenger that waits for it, and the days to publish and report on."""
    work = []
    if waiting := undecided_challenger(dataset.config, tracker):
        reason = f"version {waiting.version} was evaluated by the gate and waits for the decision"
        work.append(Work(step=Step.DECIDE, reason=reason, state=waiting.run_id))
    champion = tracker.version(dataset.name, CHAMPION)
    if champion is None:
        return Plan(tuple(work), f"no version serves so far{_without_champion(dataset, tracker)}")
    if days := days_to_publish(dataset, tracker):
        content = features_content(dataset)
        state = hash_json([champion.run_id, [content.get(day) for day in days], marks_digest(dataset.paths)])
        work.append(_work_on_days(Step.PUBLISH, days, state, dataset))
    return Plan(tuple(work), f"every day is published and reported on under version {champion.version}")


def _work_on_days(step: Step, days: Sequence[str], state: str, dataset: Dataset) -> Work:
    ranges = tuple(contiguous(days, days_with_content(dataset)))
    longest = dataset.config.scale.days_per_run
    if step == Step.INGEST and longest and dataset.config.is_daily:
        inside = ([day for day in days if first <= day <= last] for first, last in ranges)
        ranges = tuple(part for each in inside for part in cut_at_months(each, longest))
    reason = ", ".join(range_name(*bounds) for bounds in ranges)
    return Work(step=step, days=tuple(days), reason=reason, state=state, ranges=ranges)


def _without_champion(dataset: Dataset, tracker: Tracker) -> str:
    """Return what an idle plan adds where no version serves: the newest version was rejected."""
    newest = tracker.version(dataset.name, CHALLENGER)
    if newest is None or tracker.version(dataset.name, CHAMPION) is not None:
        return ""
    return (
        f"; version {newest.version} was {newest.tags.get(GATE_TAG, 'never evaluated')}, and no other version can "
        f"serve; change the data or the settings, or let it serve: `ae-pipeline rollback {dataset.name} "
        f"{newest.version} --why … --even-if-rejected`"
    )


@dataclass(frozen=True)
class LastTraining:
    """What the last training started from.

    Attributes:
        version: Version that it registered.
        content: Days of features at its start.
        settings: Hash of the settings that shape a model; None if the bundle cannot be read.
    """

    version: int
    content: Content
    settings: str | None


def last_training(config: PipelineConfig, tracker: Tracker) -> LastTraining | None:
    """Return what the newest registered training started from, or None.

    A version without a gate result comes from an interrupted training and does not count.
    """
    evaluated = [version for version in tracker.versions(config.dataset) if GATE_TAG in version.tags]
    if not evaluated:
        return None
    newest = max(evaluated, key=lambda version: version.version)
    content = window_content(tracker, newest)
    if content is None:
        return None
    try:
        _, settings = _bundle_facts(tracker, newest)
    except (BundleError, StorageError):
        settings = None
    return LastTraining(newest.version, content, settings)


def settings_hash(config: PipelineConfig) -> str:
    """Return a hash that changes when a training on the same rows would give another model.

    `images` decides what the model sees and its defaults; `label` decides which columns are withheld and which rows are
    left out. Identity, event time and the schema contract show in the content of the features. Workers and threads
    train the same network, up to rounding. Masks are for the report. A bundle scores on the device of its settings.
    """
    settings = config.model_dump(mode="json", include={"model", "training", "exclude", "derive", "images", "label"})
    del settings["training"]["workers"]
    # The default stands for every value, and defaults of later keys are left out, so that earlier hashes stay valid.
    settings["training"]["threads"] = TrainingConfig().threads
    for key in {"augmentation", "encoder_weights"} - config.training.model_dump(exclude_defaults=True).keys():
        del settings["training"][key]
    of_images = config.alerts.model_dump(include={"image_budget", "image_patches"}, exclude_defaults=True)
    further: list[object] = [config.alerts.budget, config.alerts.evidence, config.gate.days, *config.timezone_setting()]
    if config.images:
        settings["images"]["masks"] = None
        further += [of_images] if of_images and config.images.patch else []
    return hash_json([settings, *further])


def last_training_day(config: PipelineConfig, content: Content) -> str:
    """Return the newest day that a training on these days sees, or an empty text. Later days belong to the gate."""
    days = sorted(day for day, (_, rows) in content.items() if rows)
    seen = days[: max(len(days) - _gate_size(config, content), 0)]
    return seen[-1] if seen else ""


def _gate_size(config: PipelineConfig, content: Content) -> int:
    return gate_size({day: rows for day, (_, rows) in content.items() if rows}, config)


def days_to_publish(dataset: Dataset, tracker: Tracker) -> list[str]:
    """Return days with features that are not published under the version that serves, or not reported on."""
    paths = dataset.paths
    champion = tracker.version(dataset.name, CHAMPION)
    if champion is None:
        return []
    fingerprint, _ = _bundle_facts(tracker, champion)
    days = [day for day in features_content(dataset) if has_come(day, dataset.config)]
    published, interrupted = published_days(paths), cut_short(paths)
    if published and (not has_images(dataset) or TableFiles(paths.latents).damaged_texts() or not is_current(paths)):
        interrupted.add(max(published))  # that writes the texts of the table and the page over all days again
    if (filled := day_that_filled(dataset)) and filled in days:
        interrupted.add(filled)
    if days and any(not dataset.config.has_day(day) for day in published):
        interrupted.add(days[-1])  # its publication removes the rows of days that the dataset no longer has
    unreported = [day for day in days if day in interrupted or not is_reported(day, published.get(day), dataset)]
    return sorted({*stale_days(days, paths, fingerprint, champion.version), *unreported})


def _unusable_champion(config: PipelineConfig, tracker: Tracker) -> str | None:
    """Return why the version that serves cannot be loaded; None if it can, or if no version serves."""
    if champion := tracker.version(config.dataset, CHAMPION):
        try:
            _bundle_facts(tracker, champion)
        except (BundleError, StorageError) as error:
            return f"version {champion.version}, which serves, cannot be loaded ({error})"
    return None


def _bundle_facts(tracker: Tracker, version: TrackedVersion) -> tuple[str, str]:
    """Return the fingerprint of a verified bundle and the hash of its settings."""
    folder = verified_folder(tracker, version)
    return _fingerprint_and_settings(folder, tuple(digest_tags(folder).values()))


@lru_cache(maxsize=64)
def _fingerprint_and_settings(folder: Path, digests: tuple[str, ...]) -> tuple[str, str]:  # noqa: ARG001
    bundle = ModelBundle.load(folder, "cpu")  # nothing is scored
    return bundle.fingerprint, settings_hash(bundle.config)
