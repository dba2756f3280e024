"""Every key of the YAML, and the fingerprints that change with it.

A fingerprint decides what is built again: a file with another name, a training, a day of features. A key that cannot
change a row of the latent table must not change the fingerprint of a model, because equal models would have other
names for equal files.
"""

import copy
import dataclasses
import datetime as dt
import hashlib
import json
import tempfile
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ae_pipeline.config.columns import ColumnDisplay, ColumnType
from ae_pipeline.config.model import Contamination, EventTime, LossTerm, Output, Scaling, TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.section import Section
from ae_pipeline.config.service import AlertsConfig, Evidence
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.bundle_files import MANIFEST, NOT_COUNTED, fingerprint_of, read_files
from ae_pipeline.detector.digests import without_digests
from ae_pipeline.features.build import features_input_hash
from ae_pipeline.ingestion.contract import OnDelete, load_contract
from ae_pipeline.ingestion.fetch import FetchState
from ae_pipeline.ingestion.fingerprints import rule_fingerprints
from ae_pipeline.lifecycle.plan import settings_hash
from ae_pipeline.monitoring.daily_drift import drift_rule
from ae_pipeline.reports.ranking import ranking_hash
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.reference import with_reference
from tests.support.sensors import Fitted

pytestmark = pytest.mark.slow

Leaf = tuple[str, Any]
Fingerprints = Callable[[PipelineConfig], dict[str, str]]


def leaves(section: type[Section], prefix: str = "") -> Iterator[Leaf]:
    """Yield the dotted key and the default of every key below a section of the YAML."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if below and typing.get_origin(field.annotation) is not dict:
            yield from leaves(below[0], f"{prefix}{name}.")
        else:
            yield prefix + name, field.get_default(call_default_factory=True) if not field.is_required() else ""


KEYS = dict(leaves(PipelineConfig))

OTHERS: dict[str, Any] = {
    "source.query": "SELECT 1",
    "source.connection": "ORDERS_DB",
    "source.callable": "module:function",
    "source.path": "elsewhere",
    "source.separator": ";",
    "source.encoding": "cp1252",
    "source.sheet": "first",
    "source.path_columns": "(?P<branch>[a-z]+)",
    "event_time": "load",
    "timezone": "America/New_York",
    "start": dt.date(2023, 1, 1),
    "end": dt.date(2024, 3, 1),
    "columns": {"mode": ColumnType.TEXT},
    "display": {"load": ColumnDisplay(title="load of the machine")},
    "derive": {"double": "load * 2"},
    "images.path": "(?P<texture>[a-z]+)/",
    "images.patch": 8,
    "images.stride": 4,
    "images.edge": "pad",
    "images.masks": "masks/{stem}.png",
    "images.mode": "rgb",
    "images.resize": 64,
    "images.crop": 32,
    "images.pad": 32,
    "images.channels": "last",
    "label": "load > 1",
    "model.latent_dim": 2,
    "model.hidden": (8,),
    "model.channels": (8,),
    "model.down": "pool",
    "model.up": "upsample",
    "model.activation": "gelu",
    "model.event_time": EventTime.TARGET,
    "model.scaling": Scaling.UNIT,
    "model.output": Output.SIGMOID,
    "model.loss": {LossTerm.MSE: 1.0},
    "training.validation_days": 3,
    "training.calibration_days": 3,
    "training.batch_size": 64,
    "training.optimizer": "sgd",
    "training.schedule": "constant",
    "training.clip_norm": 1.0,
    "training.corruption": "gaussian",
    "training.augmentation": "flips",
    "training.encoder_weights": "encoder.safetensors",
    "training.contamination": Contamination.NONE,
    "training.where": "load > 0",
    "training.memory_budget": 2**24,
    "training.device": "cuda",
    "alerts.budget": 0.02,
    "alerts.image_budget": 0.02,
    "alerts.evidence": (Evidence.COLUMNS,),
    "alerts.false_discovery_rate": 0.1,
    "alerts.webhook": "WEBHOOK",
    "alerts.webhook_secret": "SECRET",
    "retrain.drifting_days": 3,
    "gate.days": 5,
    "scale.days_per_run": 31,
}
"""Values for keys whose default shows no other valid value."""


def other_value(key: str) -> Any:
    """Return a valid value of a key that is not its default."""
    default = KEYS[key]
    if key in OTHERS:
        return OTHERS[key]
    match default:
        case bool():
            return not default
        case float() if 0 < default <= 1:
            return default / 2
        case int() | float():
            return default + 1
        case str():
            return f"{default}x"
        case ():
            return ("load",)
    raise AssertionError(f"give a value of {key} in OTHERS")


def with_value(section: Section, key: str, value: Any) -> Any:
    """Return a section with another value of a key, unvalidated, because some keys need further ones."""
    name, _, below = key.partition(".")
    return section.model_copy(update={name: with_value(getattr(section, name), below, value) if below else value})


@pytest.fixture(scope="module")
def fingerprints(fitted: Fitted) -> Fingerprints:
    """All fingerprints of a configuration, by what is built again when one of them changes."""
    manifest, tensors = stored(fitted.bundle)
    day, contract = fitted.days[0], load_contract(fitted.paths.contract)

    def of(config: PipelineConfig) -> dict[str, str]:
        dataset = Dataset(config, fitted.paths)
        features = features_input_hash(day, dataset, contract)
        assert features is not None
        return {
            "model": fingerprint_of({**manifest, "config": config.model_dump(mode="json")}, tensors),
            "training": settings_hash(config),
            "features": features,
            "raw": rule_fingerprints(contract, dataset, dt.date(2030, 1, 1)).until_last_day,
            "fetch": FetchState.load(dataset).source,
            "report": ranking_hash(None, config),
            "drift": drift_rule(config, fitted.bundle.fingerprint),
        }

    return of


def stored(bundle: ModelBundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and tensors as `save` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        bundle.save(Path(folder))
        manifest, tensors = read_files(Path(folder))
    return dict(without_digests(manifest)), tensors


def changed_by(key: str, fingerprints: Fingerprints, config: PipelineConfig) -> set[str]:
    """Return the fingerprints that another value of a key changes."""
    images = ImagesConfig(patch=8 if key.startswith("alerts.") else None)  # only images in patches have verdicts
    base = config.model_copy(update={"images": images}) if "image" in key else config
    before, after = fingerprints(base), fingerprints(with_value(base, key, other_value(key)))
    return {name for name in before if before[name] != after[name]}


CHANGED: dict[str, tuple[str, ...]] = {
    # Nothing is built again.
    "": (
        *("description", "owners", "display", "fresh_hours", "max_quarantine_share", "max_removed_share"),
        *("source.refresh_days", "source.check_minutes", "source.pattern", "images.masks"),
        *("training.threads", "training.workers", "latents.retention_days"),
        *("alerts.min_recall", "alerts.min_precision", "alerts.webhook", "alerts.webhook_secret"),
        *("retrain.cron", "retrain.min_new_rows", "retrain.drifting_days"),
        *("gate.max_error_increase", "gate.max_ks_distance", "gate.max_recall_drop", "gate.min_alert_agreement"),
        *("gate.max_threshold_rise", "gate.min_rank_agreement", "gate.min_active_latents", "gate.compatible"),
        *("scale.days_per_run", "scale.runs_at_once"),
    ),
    "report": ("alerts.false_discovery_rate", "alerts.report_rows"),
    "drift": ("drift.psi", "drift.wasserstein", "drift.new_categories", "drift.missing", "drift.min_rows"),
    "fetch": ("source.query", "source.connection", "source.callable", "source.path"),
    # Files are read again. What follows is built again if the rows are others.
    "raw": (
        *("source.separator", "source.encoding", "source.max_record_lines", "source.sheet", "source.path_columns"),
        *("source.limits.columns", "source.limits.rows", "source.limits.rejected_rows", "source.limits.file_bytes"),
        *("source.limits.decompressed_bytes", "source.limits.compression_ratio", "source.limits.record_bytes"),
        *("source.limits.pixels", "source.limits.archive_members", "source.limits.files"),
    ),
    # A bundle scores on the device of its settings, and a budget for memory can change the rows that are sampled.
    "training": ("training.device", "training.memory_budget"),
    # The next training counts, whenever it is due.
    "model": ("dataset", "columns", "latents.min_explained_variance", "latents.max_condition_number"),
    "model raw": ("identity", "start", "end"),
    "features fetch model raw": ("event_time",),
    "features fetch model raw training": ("timezone",),
    "features model training": ("exclude", "derive", "label", "training.where", "training.split_by"),
    "features model raw report training": ("images.patch",),
    "model raw training": (
        *("images.column", "images.path", "images.stride", "images.edge", "images.mode", "images.resize"),
        *("images.crop", "images.pad", "images.channels"),
    ),
    "model training": (
        *("images.metadata", "alerts.budget", "alerts.image_budget", "alerts.image_patches", "alerts.evidence"),
        *("gate.days", "model.architecture", "model.variational", "model.latent_dim", "model.hidden", "model.tied"),
        *("model.channels", "model.down", "model.up", "model.activation", "model.event_time", "model.scaling"),
        *("model.output", "model.loss", "model.huber_delta", "training.window_days", "training.validation_days"),
        *("training.calibration_days", "training.epochs", "training.batch_size", "training.optimizer"),
        *("training.learning_rate", "training.schedule", "training.momentum", "training.weight_decay"),
        *("training.beta", "training.beta_warmup", "training.clip_norm", "training.corruption"),
        *("training.corruption_level", "training.only_normal", "training.contamination", "training.warm_start"),
        *("training.anchor", "training.patience", "training.seed", "training.max_screened_share"),
        *("training.augmentation", "training.encoder_weights"),
    ),
}
"""Keys by the fingerprints that change with them. A new key needs an entry."""


def test_every_key_has_one_entry() -> None:
    listed = [key for keys in CHANGED.values() for key in keys]
    assert sorted(listed) == sorted(KEYS)


@pytest.mark.parametrize(("key", "names"), [(key, names) for names, keys in CHANGED.items() for key in keys])
def test_a_key_changes_these_fingerprints(key: str, names: str, fingerprints: Fingerprints, fitted: Fitted) -> None:
    config = fitted.config.model_copy(update={"training": TrainingConfig(), "alerts": AlertsConfig()})
    assert changed_by(key, fingerprints, config) == set(names.split())


@pytest.fixture
def of_runs(fitted: Fitted) -> PipelineConfig:
    """The configuration with another value of each key that cannot change a row."""
    config = fitted.config
    left_out = [key for key in CHANGED[""] if not key.startswith(("images.", "source."))]  # they need further keys
    for key in [*left_out, *CHANGED["report"], *CHANGED["drift"]]:
        config = with_value(config, key, 1 if key == "training.workers" else other_value(key))
    assert config != fitted.config
    return config


def test_a_training_under_other_settings_of_runs_gives_the_same_fingerprint(
    fitted: Fitted, of_runs: PipelineConfig
) -> None:
    first, second = (
        with_reference(fit_bundle(dataset, fitted.columns, fitted.window)[0], fitted.columns, fitted.paths)
        for dataset in (Dataset(fitted.config, fitted.paths), Dataset(of_runs, fitted.paths))
    )
    assert (first.config, second.config) == (fitted.config, of_runs)
    assert second.fingerprint == first.fingerprint


def test_a_bundle_with_other_settings_of_runs_gives_the_same_rows(
    fitted: Fitted, of_runs: PipelineConfig, tmp_path: Path
) -> None:
    """A key that changes a row must count, or days would keep rows of other settings under the same name."""
    fitted.bundle.save(tmp_path)
    manifest, _ = read_files(tmp_path)
    manifest = {**without_digests(manifest), "config": of_runs.model_dump(mode="json")}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    changed, rows = ModelBundle.load(tmp_path), fitted.features(fitted.days[-1])
    assert changed.config == of_runs
    assert changed.fingerprint == fitted.bundle.fingerprint
    one, other = fitted.bundle.score(rows), changed.score(rows)
    for name in ("latents", "score", "p_value", "is_anomaly"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_rule_for_deleted_files_does_not_change_the_fingerprint(fitted: Fitted) -> None:
    contract = load_contract(fitted.paths.contract)
    first, second = (
        dataclasses.replace(fitted.bundle, contract=contract.model_copy(update={"on_delete": rule}))
        for rule in OnDelete
    )
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("left_out", [[], ["config.scale"], ["config.scale", "config.later_key"], "config", None])
def test_a_bundle_itself_says_what_its_fingerprint_leaves_out(
    fitted: Fitted, tmp_path: Path, left_out: list[str] | str | None
) -> None:
    """Another version of the package may leave out others. It must not rename the files of published tables."""
    fitted.bundle.save(tmp_path)
    manifest, tensors = read_files(tmp_path)
    manifest = {**without_digests(manifest), NOT_COUNTED: left_out}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    counted = copy.deepcopy(manifest)
    if isinstance(left_out, list):
        del counted[NOT_COUNTED]
        if left_out:
            del counted["config"]["scale"]
    digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}
    assert ModelBundle.load(tmp_path).fingerprint == hash_json([counted, digests])


def test_a_bundle_of_format_11_keeps_its_fingerprint_over_all_settings(fitted: Fitted, tmp_path: Path) -> None:
    """Its table must not be published again after an upgrade of the package."""
    fitted.bundle.save(tmp_path)
    manifest, tensors = read_files(tmp_path)
    manifest = {**without_digests(manifest), "format": 11}
    del manifest[NOT_COUNTED]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}
    assert ModelBundle.load(tmp_path).fingerprint == hash_json([manifest, digests])
