"""Detectors: scores computed by hand, and explanations against a second implementation."""

import copy
import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector import detector as detector_module
from ae_pipeline.detector import explanation
from ae_pipeline.detector import network as network_module
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.explanation import Contribution, explain
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import rows_at_once
from ae_pipeline.scoring.tails import TailCalibrator
from ae_pipeline.training.fit import fit_detector
from tests.support.sensors import FitFrame, Fitted, with_evidence

pytestmark = pytest.mark.slow

WHOLE_ROW = {"latent", "ensemble"}
"""Contributions of the row as a whole."""


def detector(columns: int, evidence: tuple[str, ...] = tuple(Evidence), *, ensemble: bool = True) -> Detector:
    """Return a detector that can only combine surprisal."""
    config = PipelineConfig.model_validate({"dataset": "d", "identity": ("id",), "alerts": {"evidence": evidence}})
    loss: Any = SimpleNamespace(columns=tuple(f"x{index}" for index in range(columns)))
    unused: Any = None
    return Detector(
        network=FittedNetwork(unused, unused, loss),
        config=config,
        mean_input=unused,
        mahalanobis=unused,
        ensemble=cast("Any", object() if ensemble else None),
        tails=TailCalibrator.none(),
    )


def test_all_work_on_batches_takes_a_turn_on_the_device(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []

    def turn(device: torch.device) -> nullcontext[None]:
        taken.append(device)
        return nullcontext()

    for module in (detector_module, network_module):
        monkeypatch.setattr(module, "device_turn", turn)
    found, rows = fitted.bundle.detector, fitted.features(fitted.days[0])
    for work in (
        found.latents_and_scores,
        lambda rows: found.scores([rows]),
        found.latents_and_losses,
        found.network.encode,
        found.network.reconstruct,
    ):
        taken.clear()
        work(rows)
        assert taken == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("shape", "rows"), [((2,), 131_072), ((64,), 131_072), ((2000,), 4194), ((1, 8, 8), 65_536), ((3, 512, 512), 5)]
)
def test_batches_on_a_cuda_device_are_bounded_by_rows_and_values(shape: tuple[int, ...], rows: int) -> None:
    assert rows_at_once(shape, torch.device("cuda")) == rows


class TestScore:
    @pytest.mark.parametrize(
        "evidence", [tuple(Evidence), ("columns", "latent", "row"), ("latent", "ensemble"), ("row",), ("columns",)]
    )
    def test_skipped_tail_lookups_change_no_score(self, fitted: Fitted, evidence: tuple[str, ...]) -> None:
        """Tails are looked up only where they can raise a score."""
        rows = pl.concat([fitted.features(day) for day in fitted.days[-3:]])
        odd = rows.with_columns(load=pl.col("load") * 3, power=pl.lit(None, pl.Float64)).head(40)
        rows = pl.concat([rows, odd.cast(rows.schema)])
        detector = with_evidence(fitted.bundle, *map(Evidence, evidence)).detector
        scores = detector.combine(detector.surprisal_of(detector.latents_and_losses(rows)[1]))
        assert (scores > 0).any()
        assert detector.latents_and_scores(rows)[1].tolist() == scores.tolist()
        assert detector.scores([rows]).tolist() == scores.tolist()


class TestCombination:
    def test_the_highest_column_is_corrected_by_ln_k(self) -> None:
        # two columns, the latent, the row
        surprisal = np.array([[0.1, 7.0, 2.0, 1.0], [0.0, 0.5, 0.0, 0.0], [1.0, 4.0, 3.9, 0.1], [1.0, 4.0, 0.1, 3.8]])
        combine = detector(2, ensemble=False).combine
        assert combine(surprisal) == pytest.approx([7.0 - np.log(2), 0.0, 3.9, 3.8], rel=1e-15)
        assert combine(np.empty((0, 4))).shape == (0,)
        # one column needs no correction
        assert detector(1, ensemble=False).combine(np.array([[3.0, 2.0, 1.0]])).tolist() == [3.0]

    def test_next_to_an_ensemble_the_rest_is_corrected_by_ln_100(self) -> None:
        surprisal = np.array(
            [
                [9.0, 1.0, 2.0, 1.0, 3.6],  # the column: 9 − ln 2 − ln 100 = 3.70
                [9.0, 1.0, 2.0, 1.0, 3.8],
                [1.0, 1.0, 8.0, 7.9, 3.3],  # the latent: 8 − ln 100 = 3.39
                [1.0, 1.0, 7.9, 8.5, 3.3],
                [8.5, 8.5, 7.9, 7.9, 3.4],
                [2.0, 2.0, 4.6, 4.6, 0.0],  # nothing is above 0
                [0.0, 0.0, 0.0, 0.0, 0.1],
            ]
        )
        hundred = np.log(100)
        expected = [9 - np.log(2) - hundred, 3.8, 8 - hundred, 8.5 - hundred, 3.4, 0.0, 0.1]
        assert detector(2).combine(surprisal) == pytest.approx(expected, rel=1e-14)
        assert detector(2).combine(np.empty((0, 5))).shape == (0,)

    @pytest.mark.parametrize(
        ("evidence", "expected"),
        [
            (("columns",), 9 - np.log(2)),
            (("latent",), 8.0),
            (("row",), 7.0),
            (("columns", "latent", "row"), 9 - np.log(2)),
            (("ensemble",), 1.0),
            (("ensemble", "row"), 7 - np.log(100)),
            (("row", "ensemble", "latent"), 8 - np.log(100)),
        ],
    )
    def test_only_the_configured_evidence_counts(self, evidence: tuple[str, ...], expected: float) -> None:
        surprisal = np.array([[0.5, 9.0, 8.0, 7.0, 1.0]])
        assert detector(2, evidence).combine(surprisal) == pytest.approx([expected], rel=1e-14)

    def test_the_false_alarm_rate_of_each_part_is_its_share(self) -> None:
        """The ensemble exceeds s with probability e^−s, and each other kind of evidence with a hundredth of that."""
        rng = np.random.default_rng(0)
        surprisal = rng.exponential(size=(400_000, 6))  # three columns, latent, row, ensemble
        for level in (3.0, 5.0):
            alone = np.exp(-level)
            others = 1 - (1 - np.exp(-level - np.log(300))) ** 3 * (1 - np.exp(-level - np.log(100))) ** 2
            share = (detector(3).combine(surprisal) > level).mean()
            expected = 1 - (1 - alone) * (1 - others)
            assert share == pytest.approx(expected, abs=4 * (expected / len(surprisal)) ** 0.5)


class TestFit:
    def test_evidence_without_the_ensemble_fits_none(self, fitted: Fitted, other_bundle: ModelBundle) -> None:
        assert other_bundle.detector.ensemble is None
        assert len(other_bundle.detector.tails.quantiles) == len(other_bundle.loss.columns) + 2
        assert len(fitted.bundle.detector.tails.quantiles) == len(fitted.bundle.loss.columns) + 3

    def test_the_ensemble_is_fitted_on_training_and_validation_rows(self, fitted: Fitted) -> None:
        rows = [fitted.window.rows(part, fitted.paths) for part in ("train", "validation")]
        ensemble = fitted.bundle.detector.ensemble
        assert ensemble is not None
        seen = np.concatenate([fitted.bundle.encoder.encode(part) for part in rows])
        assert int(ensemble.scalings.rows) == len(seen) == 1920
        references = {row.tobytes() for row in np.ascontiguousarray(ensemble.references)}
        assert references == {row.tobytes() for row in np.ascontiguousarray(seen[:, ensemble.varying])}

    def test_three_number_columns_are_fitted_with_default_settings(self, fit_frame: FitFrame) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2, 400))
        frame = pl.DataFrame({"a": a, "b": b, "c": a - b + rng.normal(0, 0.1, 400)})
        columns = [FeatureColumn(name, ColumnType.NUMBER) for name in frame.columns]
        training = {"device": "cpu", "epochs": 3, "batch_size": 64}
        bundle, _ = fit_frame(frame, columns, training=training, alerts={"budget": 0.05})
        assert bundle.config.model.latent_dim is None
        assert isinstance(bundle.encoder, TableEncoder)
        assert bundle.model.latent_dim == bundle.encoder.width // 2 < 8
        odd = frame.with_columns(c=pl.when(pl.int_range(pl.len()) == 7).then(pl.col("c") + 9).otherwise("c"))
        scored = bundle.score(odd)
        assert scored.latents.shape == (400, bundle.model.latent_dim)
        assert scored.score.argmax() == 7
        assert scored.is_anomaly[7]

    @pytest.mark.parametrize("evidence", [tuple(Evidence), ("ensemble", "columns", "latent", "row"), ("columns",)])
    def test_images_have_no_ensemble_and_a_correction_for_two(self, evidence: tuple[str, ...]) -> None:
        images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1)).astype(np.uint8)
        rows = pl.DataFrame({"image": pl.Series([image.tobytes() for image in images], dtype=pl.Binary)})
        columns = [FeatureColumn("image", ColumnType.IMAGE, ImageShape(height=6, width=6, channels=1, dtype="uint8"))]
        settings = {"dataset": "d", "identity": ("id",), "images": {}, "model": {"hidden": (8,)}}
        training = {"epochs": 1, "device": "cpu"}
        config = PipelineConfig.model_validate({**settings, "training": training, "alerts": {"evidence": evidence}})
        fitted_detector, _ = fit_detector(config, columns, rows, rows)
        surprisal = fitted_detector.surprisal_of(fitted_detector.latents_and_losses(rows)[1])
        assert fitted_detector.ensemble is None
        assert surprisal.shape == (40, 4)  # spot, flat, latent, image
        counted = np.column_stack([surprisal[:, :2].max(1) - np.log(2), surprisal[:, 2:]])
        counted = counted if "latent" in evidence else counted[:, :1]
        expected = np.maximum(counted.max(1), 0)
        np.testing.assert_allclose(fitted_detector.latents_and_scores(rows)[1], expected, rtol=1e-12)
        named = {part.column for parts in explain(fitted_detector, rows.head(5), 9) for part in parts}
        assert {"spot", "flat", "image"} <= named <= {"spot", "flat", "image", "latent"}


def head(fitted: Fitted, n: int = 20, /, **changes: pl.Expr) -> pl.DataFrame:
    """Return some normal rows of the last day without missing values, with changes."""
    rows = fitted.features(fitted.days[-1]).filter(pl.all_horizontal(pl.all().is_not_null()))
    return rows.head(n).with_columns(**changes)


FAULTS = {
    "power": pl.col("power") + 20,
    "load": pl.col("load") + 20,
    "mode": pl.lit("never seen"),
}
"""A wrong value for each of three columns."""


class Reference:
    """A second implementation of the explanation of one row, directly from the parts of a bundle."""

    def __init__(self, bundle: ModelBundle, row: pl.DataFrame) -> None:
        self.bundle, self.detector = bundle, bundle.detector
        self.model = copy.deepcopy(bundle.model).double().eval()
        self.loss = copy.deepcopy(bundle.loss).double().eval()
        self.x = torch.from_numpy(bundle.encoder.encode(row)).double()
        self.count = len(bundle.loss.columns)

    @torch.no_grad()
    def surprisal(self, x: torch.Tensor) -> np.ndarray:
        """Return the surprisal of the columns, the latent, the row and the ensemble."""
        assert self.detector.ensemble is not None
        output = self.model(x)
        losses = self.loss.parts(output, x).numpy()[0]
        parts = [
            *losses[:-1],
            *self.detector.mahalanobis(output.latents),
            losses[-1],
            *self.detector.ensemble(x),
        ]
        surprisal: np.ndarray = self.detector.surprisal_of(np.array([parts]))[0]
        return surprisal

    @torch.no_grad()
    def impute(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Replace a column by its mean, then four times by the output of the network, with the likeliest category."""
        value = torch.from_numpy(self.detector.mean_input).double()
        for last in range(5):
            x = x.clone()
            assert isinstance(self.bundle.encoder, TableEncoder)
            for block in self.bundle.encoder.blocks:
                part = value[block.start : block.stop]
                if last == 4 and block.kind == "categorical":
                    part = (torch.arange(block.width) == part.argmax()).double()
                elif last == 4 and block.kind == "binary":
                    part = (part > 0.5).double()
                if block.column == name:
                    x[0, block.start : block.stop] = part
            value = self.loss.to_scale(self.model(x).output)[0]
        return x

    def removed(self, x: torch.Tensor, name: str) -> float:
        """Return the surprisal of a column plus the decrease of all other parts but the row once it is imputed."""
        index = self.bundle.loss.columns.index(name)
        previous, after = self.surprisal(x), self.surprisal(self.impute(x, name))
        others = [i for i in range(self.count) if i != index] + [self.count, self.count + 2]
        return float(previous[index] + (previous - after)[others].sum())

    def whole_row(self, first: str) -> set[str]:
        """Return the evidence that determines the score and keeps half its surprisal once a column is imputed."""
        previous, remaining = self.surprisal(self.x), self.surprisal(self.impute(self.x, first))
        corrected = previous - np.log(100)
        corrected[: self.count] -= np.log(self.count)
        corrected[-1] = previous[-1]
        indices = {"latent": self.count, "ensemble": -1}
        return {
            name
            for name, index in indices.items()
            if corrected[index] == corrected.max() and remaining[index] > previous[index] / 2
        }


@pytest.fixture
def expected_values_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name columns with the expected value too, so that a test sees all contributions."""
    monkeypatch.setattr(explanation, "_is_expected", lambda *_: False)


class TestExplanations:
    @pytest.mark.usefixtures("expected_values_too")
    def test_columns_come_in_the_order_of_the_surprisal_they_remove(self, fitted: Fitted) -> None:
        rows = pl.concat([head(fitted, 2), head(fitted, 2, power=pl.col("power") + 20), head(fitted, 1, **FAULTS)])
        for index, parts in enumerate(fitted.bundle.explain(rows, columns=99)):
            reference = Reference(fitted.bundle, rows[index])
            named = [part for part in parts if part.column not in WHOLE_ROW]
            assert {part.column for part in named} == set(fitted.bundle.loss.columns)
            x, remaining, lowest = reference.x, list(fitted.bundle.loss.columns), np.inf
            for part in named[:3]:
                removed = {name: reference.removed(x, name) for name in remaining}
                assert removed[part.column] == pytest.approx(max(removed.values()), rel=1e-9, abs=1e-9)
                lowest = min(lowest, removed[part.column])
                assert part.surprisal == pytest.approx(lowest, rel=1e-9, abs=1e-9)
                x = reference.impute(x, part.column)
                remaining.remove(part.column)

    @pytest.mark.parametrize("column", ["load", "power", "mode"])
    def test_the_column_with_the_wrong_value_comes_first(self, fitted: Fitted, column: str) -> None:
        first = [parts[0].column for parts in fitted.bundle.explain(head(fitted, **{column: FAULTS[column]}))]
        assert first.count(column) >= 18

    @pytest.mark.parametrize("column", ["load", "power"])
    def test_the_expected_value_is_near_the_true_value(self, fitted: Fitted, column: str) -> None:
        truth = head(fitted)[column].to_numpy()
        explanations = fitted.bundle.explain(head(fitted, **{column: FAULTS[column]}))
        parts = [next(part for part in parts if part.column == column) for parts in explanations]
        assert [float(part.actual) for part in parts] == pytest.approx(truth + 20, rel=0.01)
        error = np.abs(np.array([float(part.expected) for part in parts]) / truth - 1)
        error_of_median = np.abs(np.median(truth) / truth - 1)
        assert np.quantile(error, 0.9) < 0.1 < np.quantile(error_of_median, 0.5)

    @pytest.mark.parametrize("columns", [("power", "mode"), ("load", "mode")])
    def test_two_independent_faults_come_first_and_second(self, fitted: Fitted, columns: tuple[str, str]) -> None:
        rows = head(fitted, **{column: FAULTS[column] for column in columns})
        first = [tuple(part.column for part in parts[:2]) for parts in fitted.bundle.explain(rows)]
        assert sum(set(names) == set(columns) for names in first) >= 18

    def test_a_column_with_the_expected_value_is_not_named(
        self, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = pl.concat([head(fitted, 3), *(head(fitted, 3, **{name: change}) for name, change in FAULTS.items())])
        named = fitted.bundle.explain(rows, columns=99)
        monkeypatch.setattr(explanation, "_is_expected", lambda *_: False)
        every = fitted.bundle.explain(rows, columns=99)
        assert sum(map(len, every)) > sum(map(len, named))
        for few, parts in zip(named, every, strict=True):
            rest = [part for part in parts if part not in few]
            assert all(part.expected.startswith(part.actual) for part in rest)
            assert not any(part.expected.startswith(f"{part.actual} (") for part in few)

    def test_a_row_without_any_other_reason_is_named_with_all_its_values(
        self, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(explanation, "_is_expected", lambda *_: True)
        for parts in fitted.bundle.explain(head(fitted, 3)):
            assert [part.column for part in parts] == ["row"]
            assert parts[0].actual == f"{parts[0].surprisal:.1f} nats of unusualness over all its values"

    @pytest.mark.usefixtures("expected_values_too")
    def test_the_surprisal_of_columns_never_rises(self, fitted: Fitted) -> None:
        single: list[dict[str, pl.Expr]] = [{name: change} for name, change in FAULTS.items()]
        for changes in ({}, *single, FAULTS):
            for parts in fitted.bundle.explain(head(fitted, 8, **changes), columns=99):
                nats = [part.surprisal for part in parts if part.column not in WHOLE_ROW]
                assert len(nats) == len(fitted.bundle.loss.columns)
                assert nats == sorted(nats, reverse=True)

    def test_a_row_that_no_single_column_explains_is_named_as_a_whole(self, fitted: Fitted) -> None:
        far = head(fitted, load=pl.col("load") * 15, power=pl.col("power") * 15)  # far away, but consistent
        odd = head(fitted, load=pl.col("load") + 40)
        firsts = [[parts[0].column for parts in fitted.bundle.explain(rows)] for rows in (far, odd)]
        assert sum(name in WHOLE_ROW for name in firsts[0]) >= 18
        assert sum(name in WHOLE_ROW for name in firsts[1]) <= 2
        scores = [fitted.bundle.score(rows).score for rows in (far, odd)]
        assert min(map(np.median, scores)) > fitted.bundle.calibration.threshold

    @pytest.mark.parametrize("whole", ["latent", "ensemble"])
    def test_the_whole_row_is_named_by_the_configured_evidence(self, fitted: Fitted, whole: str) -> None:
        bundle = with_evidence(fitted.bundle, Evidence(whole))
        detector = bundle.detector
        far = head(fitted, load=pl.col("load") * 15, power=pl.col("power") * 15)
        explanations = bundle.explain(far)
        assert [parts[0].column for parts in explanations].count(whole) >= 18
        other = next(iter(WHOLE_ROW - {whole}))
        assert all(part.column != other for parts in explanations for part in parts)
        surprisal = detector.surprisal_of(detector.latents_and_losses(far)[1])[:, {"latent": -3, "ensemble": -1}[whole]]
        for parts, nats in zip(explanations, surprisal, strict=True):
            assert parts[0].column != whole or parts[0].surprisal == pytest.approx(nats, rel=1e-9)

    def test_the_whole_row_is_named_only_if_it_determines_the_score(self, fitted: Fitted) -> None:
        far = {"load": pl.col("load") * 9, "power": pl.col("power") * 9}
        warm = {"temperature": pl.col("temperature") + 40}
        rows = pl.concat(
            [head(fitted, 5, **changes) for changes in (far, warm, *({name: FAULTS[name]} for name in FAULTS))]
        )
        rows = rows.filter(fitted.bundle.score(rows).score > 1)
        named = []
        for index, parts in enumerate(fitted.bundle.explain(rows)):
            first = next(part.column for part in parts if part.column not in WHOLE_ROW)
            named.append({part.column for part in parts} & WHOLE_ROW)
            assert named[-1] == Reference(fitted.bundle, rows[index]).whole_row(first)
            assert named[-1] <= {parts[0].column}
        assert 4 <= sum(map(bool, named)) <= len(named) - 4

    def test_columns_may_have_the_names_of_evidence(self, fitted: Fitted) -> None:
        names = {"load": "ensemble", "power": "row", "mode": "latent"}
        data = pl.concat([fitted.features(day) for day in (*fitted.window.train, *fitted.window.validation)])
        columns = [dataclasses.replace(column, name=names.get(column.name, column.name)) for column in fitted.columns]
        half = data.height // 2
        rows = data.rename(names)
        renamed, _ = fit_detector(fitted.config, columns, rows.head(half), rows.tail(half))
        same, _ = fit_detector(fitted.config, fitted.columns, data.head(half), data.tail(half))
        odd = pl.concat(
            [head(fitted, 5, **{name: change}) for name, change in FAULTS.items()]
            + [head(fitted, 5, load=pl.col("load") * 15, power=pl.col("power") * 15)]
        )
        assert renamed.latents_and_scores(odd.rename(names))[1].tolist() == same.latents_and_scores(odd)[1].tolist()
        expected = [
            [dataclasses.replace(part, column=names.get(part.column, part.column)) for part in parts]
            for parts in explain(same, odd)
        ]
        assert explain(renamed, odd.rename(names)) == expected

    def test_only_the_columns_with_the_highest_surprisal_are_tried(
        self, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = pl.concat([head(fitted, 5, **{name: change}) for name, change in FAULTS.items()])
        every = fitted.bundle.explain(rows)
        monkeypatch.setattr(explanation, "_MAX_CANDIDATES", 1)
        detector = fitted.bundle.detector
        surprisal = detector.surprisal_of(detector.latents_and_losses(rows)[1])[:, : len(fitted.bundle.loss.columns)]
        names = [
            next(part.column for part in parts if part.column not in WHOLE_ROW) for parts in fitted.bundle.explain(rows)
        ]
        assert names == [fitted.bundle.loss.columns[index] for index in surprisal.argmax(axis=1)]
        monkeypatch.setattr(explanation, "_MAX_CANDIDATES", len(fitted.bundle.loss.columns))
        assert fitted.bundle.explain(rows) == every

    @pytest.mark.usefixtures("expected_values_too")
    @pytest.mark.parametrize("columns", [1, 2, 3])
    def test_the_number_of_contributions_is_limited(self, fitted: Fitted, columns: int) -> None:
        rows = pl.concat([head(fitted, 3), head(fitted, 3, load=pl.col("load") * 9, power=pl.col("power") * 9)])
        explanations = fitted.bundle.explain(rows, columns)
        assert [len(parts) for parts in explanations] == [columns] * 6
        assert all(isinstance(part, Contribution) for parts in explanations for part in parts)
        assert fitted.bundle.explain(rows.head(0), columns) == []
