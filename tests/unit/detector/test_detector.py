"""Detectors: what a score is made of, by hand; and what is blamed for it, against a second way to find that."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector import detector as detectors
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Contribution, Detector
from ae_pipeline.scoring.tails import TailCalibrator
from ae_pipeline.training.fit import fit_detector
from tests.support.sensors import Fitted

WHOLE = {"latent", "ensemble"}


def detector(columns: int, evidence: tuple[str, ...] = tuple(Evidence), *, ensemble: bool = True) -> Detector:
    """A detector that can do nothing but combine."""
    config = PipelineConfig.model_validate({"dataset": "d", "identity": ("id",), "alerts": {"evidence": evidence}})
    loss = SimpleNamespace(columns=tuple(f"x{index}" for index in range(columns)))
    parts: dict[str, Any] = {"encoder": None, "model": None, "mean_input": None, "mahalanobis": None}
    return Detector(
        **parts,
        loss=cast("Any", loss),
        config=config,
        ensemble=cast("Any", object() if ensemble else None),
        tails=TailCalibrator.none(),
    )


class TestScore:
    @pytest.mark.parametrize(
        "evidence", [tuple(Evidence), ("columns", "latent", "row"), ("latent", "ensemble"), ("row",), ("columns",)]
    )
    def test_what_is_left_out_on_the_way_changes_no_score(self, fitted, evidence):
        """Tails are looked up only where they can raise a score."""
        rows = pl.concat([fitted.features(day) for day in fitted.days[-3:]])
        odd = rows.with_columns(load=pl.col("load") * 3, power=pl.lit(None, pl.Float64)).head(40)
        rows = pl.concat([rows, odd.cast(rows.schema)])
        alerts = fitted.config.alerts.model_copy(update={"evidence": tuple(map(Evidence, evidence))})
        config = fitted.bundle.config.model_copy(update={"alerts": alerts})
        bundle = dataclasses.replace(fitted.bundle, config=config)
        whole = bundle.combine(bundle.tails(bundle.latents_and_losses(rows)[1]))
        assert (whole > 0).any()
        assert bundle.latents_and_scores(rows)[1].tolist() == whole.tolist()
        assert bundle.scores([rows]).tolist() == whole.tolist()


class TestCombination:
    def test_without_an_ensemble_the_strangest_column_for_one_of_so_many_stands_beside_latent_and_row(self):
        # two columns, the latent, the row
        surprisal = np.array([[0.1, 7.0, 2.0, 1.0], [0.0, 0.5, 0.0, 0.0], [1.0, 4.0, 3.9, 0.1], [1.0, 4.0, 0.1, 3.8]])
        combine = detector(2, ensemble=False).combine
        assert combine(surprisal) == pytest.approx([7.0 - np.log(2), 0.0, 3.9, 3.8], rel=1e-15)
        assert combine(np.empty((0, 4))).shape == (0,)
        # one column has one chance
        assert detector(1, ensemble=False).combine(np.array([[3.0, 2.0, 1.0]])).tolist() == [3.0]

    def test_beside_the_ensemble_all_else_counts_for_one_in_a_hundred(self):
        surprisal = np.array(
            [
                [9.0, 1.0, 2.0, 1.0, 3.6],  # the column: 9 − ln 2 − ln 100 = 3.70
                [9.0, 1.0, 2.0, 1.0, 3.8],
                [1.0, 1.0, 8.0, 7.9, 3.3],  # the latent: 8 − ln 100 = 3.39
                [1.0, 1.0, 7.9, 8.5, 3.3],
                [8.5, 8.5, 7.9, 7.9, 3.4],
                [2.0, 2.0, 4.6, 4.6, 0.0],  # of all there is nothing left
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
    def test_only_the_evidence_that_is_named_counts_and_only_beside_the_ensemble_for_less(self, evidence, expected):
        surprisal = np.array([[0.5, 9.0, 8.0, 7.0, 1.0]])
        assert detector(2, evidence).combine(surprisal) == pytest.approx([expected], rel=1e-14)

    def test_a_false_alarm_of_each_part_is_as_rare_as_its_share_of_the_budget_says(self):
        """Of independent surprise e^−s of rows exceed it; of one ensemble and of three others at one in a hundred."""
        rng = np.random.default_rng(0)
        surprisal = rng.exponential(size=(400_000, 6))  # three columns, latent, row, ensemble
        for level in (3.0, 5.0):
            alone = np.exp(-level)
            others = 1 - (1 - np.exp(-level - np.log(300))) ** 3 * (1 - np.exp(-level - np.log(100))) ** 2
            share = (detector(3).combine(surprisal) > level).mean()
            expected = 1 - (1 - alone) * (1 - others)
            assert share == pytest.approx(expected, abs=4 * (expected / len(surprisal)) ** 0.5)


class TestFit:
    def test_evidence_without_the_ensemble_fits_none(self, fitted, other_bundle):
        assert other_bundle.ensemble is None
        assert len(other_bundle.tails.quantiles) == len(other_bundle.columns) + 2
        assert len(fitted.bundle.tails.quantiles) == len(fitted.bundle.columns) + 3

    def test_the_ensemble_is_fitted_on_training_and_validation_rows(self, fitted):
        rows = [fitted.window.rows(part, fitted.paths) for part in ("train", "validation")]
        ensemble = fitted.bundle.ensemble
        seen = np.concatenate([fitted.bundle.encoder.encode(part) for part in rows])
        assert int(ensemble.scalings.rows) == len(seen) == 1920
        found = {row.tobytes() for row in np.ascontiguousarray(ensemble.references)}
        assert found == {row.tobytes() for row in np.ascontiguousarray(seen[:, ensemble.varying])}

    def test_three_numeric_columns_are_fitted_with_the_settings_by_default(self, fit_frame):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2, 400))
        frame = pl.DataFrame({"a": a, "b": b, "c": a - b + rng.normal(0, 0.1, 400)})
        columns = [FeatureColumn(name, ColumnType.NUMBER) for name in frame.columns]
        training = {"device": "cpu", "epochs": 3, "batch_size": 64}
        bundle, _ = fit_frame(frame, columns, training=training, alerts={"budget": 0.05})
        assert bundle.config.model.latent_dim is None
        assert bundle.model.latent_dim == bundle.encoder.width // 2 < 8
        odd = frame.with_columns(c=pl.when(pl.int_range(pl.len()) == 7).then(pl.col("c") + 9).otherwise("c"))
        scored = bundle.score(odd)
        assert scored.latents.shape == (400, bundle.model.latent_dim)
        assert scored.score.argmax() == 7
        assert scored.is_anomaly[7]

    @pytest.mark.parametrize("evidence", [tuple(Evidence), ("ensemble", "columns", "latent", "row"), ("columns",)])
    def test_images_have_no_ensemble_and_no_penalty_for_one(self, evidence):
        images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1)).astype(np.uint8)
        rows = pl.DataFrame({"image": pl.Series([image.tobytes() for image in images], dtype=pl.Binary)})
        columns = [FeatureColumn("image", ColumnType.IMAGE, ImageShape(height=6, width=6, channels=1, dtype="uint8"))]
        settings = {"dataset": "d", "identity": ("id",), "images": {}, "model": {"hidden": (8,)}}
        training = {"epochs": 1, "device": "cpu"}
        config = PipelineConfig.model_validate({**settings, "training": training, "alerts": {"evidence": evidence}})
        found, _ = fit_detector(config, columns, rows, rows)
        surprisal = found.tails(found.latents_and_losses(rows)[1])
        assert found.ensemble is None
        assert surprisal.shape == (40, 3)  # spot, latent, image
        counted = surprisal if "latent" in evidence else surprisal[:, :1]
        np.testing.assert_allclose(found.latents_and_scores(rows)[1], counted.max(1), rtol=1e-12)
        named = {part.column for parts in found.explain(rows.head(5), 9) for part in parts}
        assert {"spot", "image"} <= named <= {"spot", "image", "latent"}


def head(fitted: Fitted, n: int = 20, **changes: pl.Expr) -> pl.DataFrame:
    """Some normal rows without gaps of the last day, with changes."""
    rows = fitted.features(fitted.days[-1]).filter(pl.all_horizontal(pl.all().is_not_null()))
    return rows.head(n).with_columns(**changes)


CHANGES = {
    "power": pl.col("power") + 20,
    "load": pl.col("load") + 20,
    "mode": pl.lit("never seen"),
}


class Second:
    """What an explanation should say of one row, computed a second time and straight from the parts of a bundle."""

    def __init__(self, bundle: ModelBundle, row: pl.DataFrame) -> None:
        self.bundle = bundle
        self.model, self.loss = (copy.deepcopy(part).double().eval() for part in (bundle.model, bundle.loss))
        self.x = torch.from_numpy(bundle.encoder.encode(row)).double()
        self.count = len(bundle.columns)

    @torch.no_grad()
    def surprisal(self, x: torch.Tensor) -> np.ndarray:
        """Of the columns, the latent, the row and the ensemble."""
        passed = self.model(x)
        losses = self.loss.parts(passed, x).numpy()[0]
        parts = [
            *losses[:-1],
            *self.bundle.mahalanobis(passed.latents.numpy()),
            losses[-1],
            *self.bundle.ensemble(x.numpy()),
        ]
        return self.bundle.tails(np.array([parts]))[0]

    @torch.no_grad()
    def mend(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Puts the typical value into a column, then four times what the network makes of the row, and one category."""
        value = torch.from_numpy(self.bundle.mean_input).double()
        for last in range(5):
            x = x.clone()
            for block in self.bundle.encoder.blocks:
                own = value[block.start : block.stop]
                if last == 4 and block.kind == "categorical":
                    own = (torch.arange(block.width) == own.argmax()).double()
                elif last == 4 and block.kind == "binary":
                    own = (own > 0.5).double()
                if block.column == name:
                    x[0, block.start : block.stop] = own
            value = self.loss.to_scale(self.model(x).output)[0]
        return x

    def blame(self, x: torch.Tensor, name: str) -> float:
        """A column's own surprise, and by how much that of all else but the row falls once it is mended."""
        index, previous, after = self.bundle.columns.index(name), self.surprisal(x), self.surprisal(self.mend(x, name))
        others = [i for i in range(self.count) if i != index] + [self.count, self.count + 2]
        return float(previous[index] + (previous - after)[others].sum())

    def whole(self, first: str) -> set[str]:
        """The parts that the score is that of, and that mending the first column leaves more than half of."""
        previous, left = self.surprisal(self.x), self.surprisal(self.mend(self.x, first))
        worth = previous - np.log(100)
        worth[: self.count] -= np.log(self.count)
        worth[-1] = previous[-1]
        governing = {name for name, index in (("latent", self.count), ("ensemble", -1)) if worth[index] == worth.max()}
        places = {"latent": self.count, "ensemble": -1}
        return {name for name in governing if left[places[name]] > previous[places[name]] / 2}


class TestExplanations:
    def test_the_column_is_named_whose_mending_the_surprise_falls_by_most_and_then_the_next_of_the_mended_row(
        self, fitted
    ):
        rows = pl.concat([head(fitted, 2), head(fitted, 2, power=pl.col("power") + 20), head(fitted, 1, **CHANGES)])
        for index, parts in enumerate(fitted.bundle.explain(rows, columns=99)):
            second = Second(fitted.bundle, rows[index])
            named = [part for part in parts if part.column not in WHOLE]
            assert {part.column for part in named} == set(fitted.bundle.columns)
            x, left, least = second.x, list(fitted.bundle.columns), np.inf
            for part in named[:3]:
                blame = {name: second.blame(x, name) for name in left}
                assert blame[part.column] == pytest.approx(max(blame.values()), rel=1e-9, abs=1e-9)
                least = min(least, blame[part.column])
                assert part.surprisal == pytest.approx(least, rel=1e-9, abs=1e-9)
                x = second.mend(x, part.column)
                left.remove(part.column)

    @pytest.mark.parametrize("column", ["load", "power", "mode"])
    def test_the_column_with_the_odd_value_is_blamed_and_not_those_that_it_spoils(self, fitted, column):
        blamed = [parts[0].column for parts in fitted.bundle.explain(head(fitted, **{column: CHANGES[column]}))]
        assert blamed.count(column) >= 18

    @pytest.mark.parametrize("column", ["load", "power"])
    def test_what_is_expected_instead_is_near_the_value_that_was_there_before(self, fitted, column):
        truth = head(fitted)[column].to_numpy()
        explained = fitted.bundle.explain(head(fitted, **{column: CHANGES[column]}))
        parts = [next(part for part in parts if part.column == column) for parts in explained]
        assert [float(part.actual) for part in parts] == pytest.approx(truth + 20, rel=0.01)
        off = np.abs(np.array([float(part.expected) for part in parts]) / truth - 1)
        mean_input = np.abs(np.median(truth) / truth - 1)
        assert np.quantile(off, 0.9) < 0.1 < np.quantile(mean_input, 0.5)

    @pytest.mark.parametrize("columns", [("power", "mode"), ("load", "mode")])
    def test_two_faults_that_have_nothing_to_do_with_one_another_take_the_first_two_places(self, fitted, columns):
        rows = head(fitted, **{column: CHANGES[column] for column in columns})
        first = [tuple(part.column for part in parts[:2]) for parts in fitted.bundle.explain(rows)]
        assert sum(set(names) == set(columns) for names in first) >= 18

    def test_nats_of_columns_do_not_rise_along_a_list(self, fitted):
        for changes in ({}, *({name: change} for name, change in CHANGES.items()), CHANGES):
            for parts in fitted.bundle.explain(head(fitted, 8, **changes), columns=99):
                nats = [part.surprisal for part in parts if part.column not in WHOLE]
                assert len(nats) == len(fitted.bundle.columns)
                assert nats == sorted(nats, reverse=True)

    def test_a_row_that_no_column_accounts_for_is_named_as_a_whole_first_and_with_one_odd_value_it_is_not(self, fitted):
        far = head(fitted, load=pl.col("load") * 15, power=pl.col("power") * 15)  # as far and yet of a piece
        odd = head(fitted, load=pl.col("load") + 40)
        firsts = [[parts[0].column for parts in fitted.bundle.explain(rows)] for rows in (far, odd)]
        assert sum(name in WHOLE for name in firsts[0]) >= 18
        assert sum(name in WHOLE for name in firsts[1]) <= 2
        scores = [fitted.bundle.score(rows).score for rows in (far, odd)]
        assert min(map(np.median, scores)) > fitted.bundle.calibration.threshold

    @pytest.mark.parametrize("whole", ["latent", "ensemble"])
    def test_the_whole_is_named_by_the_evidence_that_counts(self, fitted, whole):
        alerts = fitted.config.alerts.model_copy(update={"evidence": (Evidence(whole),)})
        bundle = dataclasses.replace(fitted.bundle, config=fitted.config.model_copy(update={"alerts": alerts}))
        far = head(fitted, load=pl.col("load") * 15, power=pl.col("power") * 15)
        explained = bundle.explain(far)
        assert [parts[0].column for parts in explained].count(whole) >= 18
        other = next(iter(WHOLE - {whole}))
        assert all(part.column != other for parts in explained for part in parts)
        surprisal = bundle.tails(bundle.latents_and_losses(far)[1])[:, {"latent": -3, "ensemble": -1}[whole]]
        for parts, nats in zip(explained, surprisal, strict=True):
            assert parts[0].column != whole or parts[0].surprisal == pytest.approx(nats, rel=1e-9)

    def test_the_whole_is_said_where_it_makes_the_score_and_outlasts_the_first_column_and_nowhere_else(self, fitted):
        far = {"load": pl.col("load") * 9, "power": pl.col("power") * 9}
        warm = {"temperature": pl.col("temperature") + 40}
        rows = pl.concat(
            [head(fitted, 5, **changes) for changes in (far, warm, *({name: CHANGES[name]} for name in CHANGES))]
        )
        rows = rows.filter(fitted.bundle.score(rows).score > 1)
        said = []
        for index, parts in enumerate(fitted.bundle.explain(rows)):
            first = next(part.column for part in parts if part.column not in WHOLE)
            said.append({part.column for part in parts} & WHOLE)
            assert said[-1] == Second(fitted.bundle, rows[index]).whole(first)
            assert said[-1] <= {parts[0].column}
        assert 4 <= sum(map(bool, said)) <= len(said) - 4

    @pytest.mark.parametrize("taken", [{"load": "ensemble"}, {"power": "row", "mode": "latent"}])
    def test_columns_may_be_named_like_evidence(self, fitted, taken):
        data = pl.concat([fitted.features(day) for day in (*fitted.window.train, *fitted.window.validation)])
        columns = [dataclasses.replace(column, name=taken.get(column.name, column.name)) for column in fitted.columns]
        half = data.height // 2
        rows = data.rename(taken)
        found, _ = fit_detector(fitted.config, columns, rows.head(half), rows.tail(half))
        same, _ = fit_detector(fitted.config, fitted.columns, data.head(half), data.tail(half))
        odd = pl.concat(
            [head(fitted, 5, **{name: change}) for name, change in CHANGES.items()]
            + [head(fitted, 5, load=pl.col("load") * 15, power=pl.col("power") * 15)]
        )
        assert found.latents_and_scores(odd.rename(taken))[1].tolist() == same.latents_and_scores(odd)[1].tolist()
        expected = [
            [dataclasses.replace(part, column=taken.get(part.column, part.column)) for part in parts]
            for parts in same.explain(odd)
        ]
        assert found.explain(odd.rename(taken)) == expected

    def test_of_many_columns_the_strangest_are_tried(self, fitted, monkeypatch):
        rows = pl.concat([head(fitted, 5, **{name: change}) for name, change in CHANGES.items()])
        every = fitted.bundle.explain(rows)
        monkeypatch.setattr(detectors, "_SUSPECTS", 1)
        surprisal = fitted.bundle.tails(fitted.bundle.latents_and_losses(rows)[1])[:, : len(fitted.bundle.columns)]
        names = [
            next(part.column for part in parts if part.column not in WHOLE) for parts in fitted.bundle.explain(rows)
        ]
        assert names == [fitted.bundle.columns[index] for index in surprisal.argmax(axis=1)]
        monkeypatch.setattr(detectors, "_SUSPECTS", len(fitted.bundle.columns))
        assert fitted.bundle.explain(rows) == every

    @pytest.mark.parametrize("columns", [1, 2, 3])
    def test_no_more_is_named_than_is_asked_for(self, fitted, columns):
        rows = pl.concat([head(fitted, 3), head(fitted, 3, load=pl.col("load") * 9, power=pl.col("power") * 9)])
        explained = fitted.bundle.explain(rows, columns)
        assert [len(parts) for parts in explained] == [columns] * 6
        assert all(isinstance(part, Contribution) for parts in explained for part in parts)
        assert fitted.bundle.explain(rows.head(0), columns) == []
