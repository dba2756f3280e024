"""Rows that an ingestion or a publication would remove, and the question whether that is intended."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.common.errors import RemovalError, SchemaError
from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.display import count_rejected, noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import SchemaContract, contract_in_force
from ae_pipeline.ingestion.deduplicate import partition_by_identity
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.ingestion.staged import kept_contract, read_staged
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths

_FEW_ROWS = 5
"""Rows below which a removal needs no confirmation, unless no row is left."""

_NAMED = 3
"""Reasons and edits that a message names."""

Files = Mapping[str, LandedFile]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Rows that would be removed.

    Attributes:
        rows: Number of rows that would go.
        standing: Number of rows that stand.
        where: Where they stand, such as `raw_data`.
        reasons: Why they would go, the most frequent reason first.
    """

    rows: int
    standing: int
    where: str
    reasons: tuple[str, ...]

    def exceeds(self, max_share: float) -> bool:
        """Return whether somebody must confirm it: a few rows may go, but not all."""
        is_many = self.rows > max_share * self.standing and self.rows >= min(_FEW_ROWS, self.standing)
        return is_many and self.rows > 0

    def as_error(self, dataset: Dataset) -> RemovalError:
        """Return the error that asks for a confirmation."""
        standing = pluralize(self.standing, noun_of_rows(dataset.config))
        reasons = "; ".join(self.reasons) or "no rule is known"
        return RemovalError(
            f"{self.rows:,} of {standing} ({self.rows / self.standing:.1%}) of {dataset.name!r} "
            f"would leave {self.where}, more than max_removed_share={dataset.config.max_removed_share:g} allows: "
            f"{reasons}. Nothing was changed. Undo what removes them, or accept it with `ae-pipeline run "
            f"{dataset.name} --accept-removal` (in Dagster: a run with the tag ae_pipeline/accept_removal=yes)"
        )


def find_removal(previous: Ledger, files: Files, contract: SchemaContract, dataset: Dataset) -> Removal | None:
    """Return the rows of `raw_data` that would go if the ledger had other entries, or None if none would.

    New files can add and replace rows, but they do not make up for rows that go. A row that is in another file than
    before does not go.

    Args:
        previous: Ledger of the last ingestion, whose staged copies still exist.
        files: Entries that shall replace its entries.
        contract: Schema contract of these entries.
        dataset: Dataset with the present configuration.
    """
    changed = {name: entry for name, entry in previous.files.items() if _staged(files.get(name)) != entry.staged}
    days = [path.stem for path in dataset.paths.raw("_").parent.glob("[!.]*.parquet")]
    is_lost = not any(entry.staged for entry in previous.files.values())
    has_foreign_days = any(not dataset.config.has_day(day) for day in days)
    if not days or not (changed or has_foreign_days or is_lost):
        return None
    rows = {day: int(read_facts(dataset.paths.raw(day)).get("rows", 0)) for day in days}
    foreign = sum(count for day, count in rows.items() if not dataset.config.has_day(day))
    standing = sum(rows.values())
    at_risk = foreign + sum(entry.rows for entry in changed.values())
    if not is_lost and at_risk <= dataset.config.max_removed_share * standing:
        return None
    lost_ids, kept = _compare(previous.files, files, rows, dataset)
    # A change of the identity or of a type gives all rows another id, so that only their number counts.
    removed = standing - kept if is_lost else min(lost_ids, standing - kept)
    if removed <= 0:
        return None
    reasons = [*_reasons(changed, files, dataset), *_foreign_reason(changed, files, dataset)][:_NAMED]
    if is_lost:
        reasons = [f"{dataset.paths.ledger} knew no file, so only files in the landing folder count"]
    reasons += _edits(contract, dataset)
    return Removal(rows=removed, standing=standing, where="raw_data", reasons=tuple(reasons))


def _staged(entry: LandedFile | None) -> str | None:
    return entry.staged if entry else None


def _compare(previous: Files, files: Files, standing: Mapping[str, int], dataset: Dataset) -> tuple[int, int]:
    """Return how many rows are in no file any more, and how many rows the files have that were known before.

    Args:
        previous: Entries of the last ingestion.
        files: Entries that shall replace them.
        standing: Number of raw rows of each day.
        dataset: Dataset with the present configuration.
    """
    earlier = {entry.staged: name for name, entry in previous.items() if entry.staged}
    after = {entry.staged: name for name, entry in files.items() if entry.staged}
    known = {copy for copy, name in after.items() if name in previous or not earlier}
    has_day = dataset.config.has_day
    built = [day for day, rows in standing.items() if rows]

    damaged = {copy for copy in (*earlier, *after) if not read_facts(dataset.paths.staged(copy))}

    def batches() -> Iterator[pl.DataFrame]:
        for copy in dict.fromkeys((*earlier, *after)):
            if copy in damaged:
                continue
            source = earlier.get(copy) or after[copy]
            entry = previous[source] if copy in earlier else files[source]
            rows = read_staged(entry, source, dataset.paths, ["row_id", "_day"])
            valid = [day for day in rows["_day"].unique() if has_day(day)]
            is_valid = pl.col("_day").is_in(valid) & pl.lit(copy in after)
            yield rows.select(
                "row_id",
                earlier=pl.col("_day").is_in(built) & pl.lit(copy in earlier),
                after=is_valid,
                known=is_valid & pl.lit(copy in known),
            )

    count = sum(entry.rows for entry in (*previous.values(), *files.values()))
    lost = 0
    kept = sum(files[name].rows for copy, name in after.items() if copy in damaged & known)
    for part in partition_by_identity(batches(), count, dataset.paths.scratch):
        counts = part.group_by("row_id").agg(pl.col("earlier", "after", "known").sum().cast(pl.Int64))
        if dataset.config.identity:  # a later row replaces an earlier one
            counts = counts.with_columns(pl.col("earlier", "after", "known").clip(upper_bound=1))
        lost += int((counts["earlier"] - counts["after"]).clip(lower_bound=0).sum())
        kept += int(counts["known"].sum())
    # What was in a damaged copy is unknown, so that only the number of rows counts.
    return sum(standing.values()) if damaged & earlier.keys() else lost, kept


def _reasons(changed: Files, files: Files, dataset: Dataset) -> list[str]:
    """Return why rows of known files go, with the number of rows, the largest number first."""
    rules: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for name, entry in changed.items():
        new = files.get(name)
        if new is None:
            reason, lost = "on_delete=withdraw of a deleted file", entry.rows
        elif new.refused and new.staged is None:
            reason, lost = f"the file is now refused: {new.refused}", entry.rows
        else:
            more = Counter(new.quarantined) - Counter(entry.quarantined)
            rules += more
            reason, lost = (
                f"the file landed again with fewer {plural(noun_of_rows(dataset.config))}",
                entry.rows - new.rows - more.total(),
            )
            if new.sha256 == entry.sha256:
                reason = f"the file gives fewer {plural(noun_of_rows(dataset.config))} with the present settings"
        if lost > 0:
            rows[reason] += lost
            examples.setdefault(reason, name)
    noun = noun_of_rows(dataset.config)
    texts = {
        f"{count_rejected(count, dataset.config)} to quarantine by the rule {rule!r}": count
        for rule, count in rules.items()
    }
    texts |= {
        f"{pluralize(count, noun)} of {examples[reason]}{' and others' if _is_shared(reason, changed) else ''} "
        f"({reason})": count
        for reason, count in rows.items()
    }
    if not texts and changed:
        identity = list(dataset.config.identity)
        texts[f"{plural(noun)} that are equal by identity={identity} replace one another"] = 0
    return sorted(texts, key=lambda text: -texts[text])


def _is_shared(reason: str, changed: Files) -> bool:
    return len(changed) > 1 and not reason.startswith("the file is now refused")


def _foreign_reason(changed: Files, files: Files, dataset: Dataset) -> list[str]:
    """Return why rows go that lie on days outside of the configured ones, in files that were not read again."""
    config = dataset.config
    rows = sum(
        count
        for name, entry in files.items()
        if name not in changed
        for day, count in entry.days.items()
        if not config.has_day(day)
    )
    bounds = f"start={config.start}, end={config.end}, event_time={config.event_time!r}"
    return [f"{pluralize(rows, noun_of_rows(config))} outside of {bounds}"] if rows else []


def _edits(contract: SchemaContract, dataset: Dataset) -> list[str]:
    """Return what was edited since the last ingestion, in the schema contract and in the YAML."""
    last, settings = _last_contract(dataset), _last_settings(dataset.paths)
    pairs = (
        (dataset.paths.contract, _rules(last) if last else {}, _rules(contract)),
        ("the YAML", _flat(settings), _flat(json.loads(json.dumps(_settings(dataset.config))))),
    )
    texts = []
    for source, old, new in pairs:
        changed = [key for key in {**old, **new} if old and old.get(key) != new.get(key)]
        edits = [f"{key} is {new.get(key)!r}, was {old.get(key)!r}" for key in changed[:_NAMED]]
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        texts += [f"edits in {source}: {', '.join(edits)}{more}"] if edits else []
    return texts


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of a section under a name such as `images.resize`."""
    parts = (
        {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
        for key, value in settings.items()
    )
    return {name: value for part in parts for name, value in part.items()}


def _rules(contract: SchemaContract) -> dict[str, Any]:
    """Return the keys of a schema contract with their values; those of a column start with its name."""
    content = contract.model_dump(mode="json", exclude={"dataset"})
    columns = content.pop("columns")
    return {**content, **{f"{name}.{key}": value for name, rule in columns.items() for key, value in rule.items()}}


def _settings(config: PipelineConfig) -> dict[str, Any]:
    """Return the settings that decide which rows are valid, by their key in the YAML."""
    settings = config.model_dump(mode="json", include={"identity", "event_time", "timezone", "start", "end", "images"})
    source = config.source.model_dump(mode="json", include={"path", "pattern"})
    return {**settings, **{f"source.{key}": value for key, value in {**source, **config.source.reading}.items()}}


def _last_settings(paths: DatasetPaths) -> dict[str, Any]:
    """Return the settings of the last ingestion; empty if they are not known."""
    try:
        return dict(json.loads(_kept_settings(paths).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def keep_settings(dataset: Dataset) -> None:
    """Remember the settings of an ingestion, so that a later one can name what was edited."""
    text, path = json.dumps(_settings(dataset.config)), _kept_settings(dataset.paths)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def _kept_settings(paths: DatasetPaths) -> Path:
    return paths.ledger.with_name("settings.json")


def _last_contract(dataset: Dataset) -> SchemaContract | None:
    """Return the schema contract that the last ingestion used, or None if it is not known."""
    path = kept_contract(dataset.paths)
    try:
        return contract_in_force(path, dataset.config) if path.is_file() else None
    except SchemaError:
        return None


def has_unread_contract(contract: SchemaContract, dataset: Dataset) -> bool:
    """Return whether the rules of the schema contract differ from those that the last ingestion used.

    Args:
        contract: Schema contract in force.
        dataset: Dataset of the contract.
    """
    last = _last_contract(dataset)
    return last is not None and last.fingerprint != contract.fingerprint


def accept_removal(ledger: Ledger, paths: DatasetPaths) -> None:
    """Remember that somebody accepted what a ledger removes, so that the publication does not ask again."""
    write_text(_accepted(paths), json.dumps({"ledger": _digest(ledger)}))


def is_accepted(paths: DatasetPaths) -> bool:
    """Return whether somebody accepted what the present ledger removes."""
    try:
        accepted = json.loads(_accepted(paths).read_text(encoding="utf-8"))
        return bool(accepted["ledger"] == _digest(Ledger.load(paths.ledger)))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _accepted(paths: DatasetPaths) -> Path:
    return paths.ledger.with_name("accepted.json")


def _digest(ledger: Ledger) -> str:
    return hash_json(sorted((name, entry.staged) for name, entry in ledger.files.items()))
