"""The event time in a bundle: context today, a target in bundles of version 0.2."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ae_pipeline.config.model import EventTime
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.bundle_files import MANIFEST
from ae_pipeline.detector.imputation import move_event_time
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import fit_bundle
from tests.support.arrays import apply
from tests.support.sensors import NO_ENSEMBLE, Fitted, sensor_config, with_encoder

pytestmark = pytest.mark.slow


class TestBundlesBeforeContext:
    """Bundles that version 0.2 wrote: the event time was a column like all others."""

    @pytest.fixture(scope="class")
    def target(self, fitted: Fitted) -> ModelBundle:
        model = fitted.config.model.model_copy(update={"event_time": EventTime.TARGET})
        config = sensor_config(model=model.model_dump(), alerts={"budget": 0.01, "evidence": NO_ENSEMBLE})
        return fit_bundle(Dataset(config, fitted.paths), fitted.columns, fitted.window)[0]

    @pytest.fixture
    def old(self, target: ModelBundle, tmp_path: Path) -> Path:
        target.save(tmp_path)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        del manifest["config"]["model"]["event_time"], manifest["facts"]["chosen"], manifest["calibration"]["budget"]
        del manifest["digests"], manifest["encoder"]["context"], manifest["encoder"]["context_blocks"]
        for column in manifest["encoder"]["columns"]:
            del column["hours"]
        (tmp_path / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        return tmp_path

    def test_they_load_as_target_and_score_byte_for_byte(self, target: ModelBundle, old: Path, fitted: Fitted) -> None:
        loaded, rows = ModelBundle.load(old), fitted.features(fitted.days[-1])
        assert loaded.config.model.event_time == EventTime.TARGET
        assert "event_time" in loaded.loss.columns
        assert loaded.score(rows).score.tobytes() == target.score(rows).score.tobytes()
        assert loaded.calibration.budget == 0.01
        assert loaded.explain(rows.head(5)) == target.explain(rows.head(5))

    def test_they_keep_their_fingerprint(self, target: ModelBundle, old: Path) -> None:
        fingerprint = ModelBundle.load(old).fingerprint
        assert fingerprint != target.fingerprint  # it is that of the file
        ModelBundle.load(old).save(old / "again")
        assert ModelBundle.load(old).fingerprint == fingerprint


class TestEventTime:
    def test_it_is_no_evidence_and_no_reason_of_usual_rows(self, fitted: Fitted) -> None:
        bundle, rows = fitted.bundle, fitted.features(fitted.days[-1])
        assert bundle.columns[-1] == "event_time"
        assert "event_time" not in bundle.loss.columns
        reasons = {part.column for parts in bundle.explain(rows, columns=99) for part in parts}
        assert reasons >= set(bundle.loss.columns)
        assert "event_time" not in reasons

    def test_a_wrong_hour_is_named_with_the_hour_that_fits(self, fitted: Fitted) -> None:
        """Only one column depends on the hour, so either of the two can be the wrong one."""
        rows = fitted.features(fitted.days[-1]).drop_nulls("scheduled").head(20)
        wrong = rows.with_columns(pl.col("event_time") + pl.duration(hours=9))
        detector = fitted.bundle.detector
        x = detector.network.encode_batch(wrong)
        moved = move_event_time(detector, wrong, x, detector.surprisal(detector.network.forward(x), x))
        away = (moved.times - rows["event_time"]).dt.total_minutes().abs().to_numpy()
        assert (away <= 60).sum() >= 16
        removed = detector.surprisal(detector.network.forward(x), x) - detector.surprisal(
            detector.network.forward(moved.x), moved.x
        )
        counted = np.delete(removed, detector.part_index(Evidence.ROW), axis=1)
        assert moved.removed == pytest.approx(counted.sum(axis=1) - np.log(29), rel=1e-9)
        named = [{part.column: part for part in parts} for parts in fitted.bundle.explain(wrong)]
        assert {"event_time", "scheduled"} >= {next(iter(parts)) for parts in named}
        times = [parts["event_time"] for parts in named if "event_time" in parts]
        assert times
        assert all(part.surprisal >= 4.6 and part.actual != part.expected for part in times)

    def test_hours_without_training_rows_are_not_tried(self, fitted: Fitted) -> None:
        """The encoder takes such an hour for the nearest known one, so that it would fit as well as that one."""
        bundle, is_open = fitted.bundle, range(8, 18)
        encoder = bundle.encoder
        assert isinstance(encoder, TableEncoder)
        hours = tuple(min(max(hour, is_open[0]), is_open[-1]) for hour in range(24))
        (context,) = encoder.context
        detector = with_encoder(
            bundle, encoder.model_copy(update={"context": (context.model_copy(update={"hours": hours}),)})
        ).detector
        rows = fitted.features(fitted.days[-1])
        x = detector.network.encode_batch(rows)
        surprisal = detector.surprisal(detector.network.forward(x), x)
        moved = move_event_time(detector, rows, x, surprisal)
        assert set(moved.times.dt.hour()) <= set(is_open)
        removed = surprisal - detector.surprisal(detector.network.forward(moved.x), moved.x)
        # A row at a known hour can move to nine other hours and six other days, any other row to ten hours.
        tried = np.where(rows["event_time"].dt.hour().is_in(is_open), 9 + 6, 10)
        counted = np.delete(removed, detector.part_index(Evidence.ROW), axis=1)
        assert moved.removed == pytest.approx(counted.sum(axis=1) - np.log(tried), rel=1e-9)

    def test_the_ensemble_does_not_measure_it(self, fitted: Fitted) -> None:
        bundle, rows = fitted.bundle, fitted.features(fitted.days[-1])
        assert bundle.detector.ensemble is not None
        moved = rows.with_columns(pl.col("event_time") + pl.duration(hours=9))
        matrices = [bundle.encoder.encode(each).astype(np.float64) for each in (rows, moved)]
        assert (matrices[0] != matrices[1]).any()
        before, after = (apply(bundle.detector.ensemble, matrix) for matrix in matrices)
        np.testing.assert_array_equal(before, after)
