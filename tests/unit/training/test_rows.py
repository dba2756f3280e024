"""Training rows that do not fit into memory: packed, distributed over blocks on disk, sampled and trained on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from ae_pipeline.common import cgroup, memory
from ae_pipeline.common.errors import StorageError, TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.encoding.packing import Packing
from ae_pipeline.encoding.table_fitting import fit_table_encoder
from ae_pipeline.features.split import GATE, PARTS, Window, sample_by_hash, sample_rows
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training import memory_budget
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.loop import TrainingResult
from ae_pipeline.training.reference import with_reference
from ae_pipeline.training.rows import InMemory, OnDisk, blocks_for
from tests.support.sensors import NO_ENSEMBLE, FitFrame, Fitted

pytestmark = pytest.mark.slow

FULL = Path("/dev/full")

KINDS = (
    FeatureColumn("x", ColumnType.NUMBER),
    FeatureColumn("c", ColumnType.CATEGORY),
    FeatureColumn("clock", ColumnType.CLOCK_HHMM),
    FeatureColumn("is_open", ColumnType.BOOLEAN),
)


def mixed(count: int, seed: int = 0) -> pl.DataFrame:
    """Return rows with columns of all kinds and some missing values."""
    rng = np.random.default_rng(seed)
    gaps = pl.Series(rng.random(count) < 0.1)
    return pl.DataFrame(
        {
            "x": pl.Series(rng.normal(size=count)).set(gaps, None),
            "c": pl.Series(rng.choice(["a", "b", "c", "rare"], count, p=[0.5, 0.3, 0.199, 0.001])).set(gaps, None),
            "clock": rng.integers(0, 1440, count).astype(float),
            "is_open": rng.random(count) < 0.3,
        }
    )


def on_disk(
    tmp_path: Path, rows: np.ndarray, blocks: int = 5, latents: np.ndarray | None = None, at_once: int = 70
) -> OnDisk:
    """Write rows to disk in batches."""
    packing = Packing((rows.shape[1],), np.arange(rows.shape[1]), np.empty((0, 2), np.int64))
    starts = range(0, len(rows), at_once)
    pieces = ((rows[i : i + at_once], None if latents is None else latents[i : i + at_once]) for i in starts)
    return OnDisk(tmp_path, pieces, packing, blocks, 0, torch.device("cpu"))


def numbered(count: int) -> np.ndarray:
    """Return rows that hold their own index."""
    return np.stack([np.arange(count), -np.arange(count)], axis=1).astype(np.float32)


class TestPacking:
    def test_unpacked_rows_are_the_original_bytes(self) -> None:
        frame = mixed(500)
        encoder = fit_table_encoder(frame, KINDS)
        packing, encoded = Packing.of(encoder), encoder.encode(frame)
        records = packing.pack(encoded)
        assert records.shape == (500, packing.width)
        assert packing.width < encoder.width
        np.testing.assert_array_equal(packing.unpack(torch.from_numpy(records)).numpy(), encoded)

    def test_a_thousand_categories_are_packed_into_one_number(self) -> None:
        frame = pl.DataFrame({"c": [f"name {index % 1000}" for index in range(10_000)], "y": range(10_000)})
        columns = (FeatureColumn("c", ColumnType.CATEGORY), FeatureColumn("y", ColumnType.NUMBER))
        encoder = fit_table_encoder(frame, columns)
        packing, encoded = Packing.of(encoder), encoder.encode(frame)
        assert encoded.shape[1] > 1000
        assert packing.width == 3  # the number, whether it is missing, and the category
        np.testing.assert_array_equal(packing.unpack(torch.from_numpy(packing.pack(encoded))).numpy(), encoded)


class TestOnDisk:
    @pytest.mark.parametrize(("count", "blocks", "size"), [(1000, 5, 64), (1000, 1, 64), (3, 5, 64), (130, 7, 130)])
    def test_an_epoch_yields_each_row_once_in_full_batches(
        self, tmp_path: Path, count: int, blocks: int, size: int
    ) -> None:
        rows = on_disk(tmp_path, numbered(count), blocks)
        batches = [batch.rows for batch in rows.shuffled(size, torch.Generator().manual_seed(1))]
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert 0 < len(batches[-1]) <= size
        epoch = torch.cat(batches).numpy()
        assert len(rows) == count
        np.testing.assert_array_equal(epoch[epoch[:, 0].argsort()], numbered(count))

    def test_epochs_differ_and_are_reproducible(self, tmp_path: Path) -> None:
        one, other = on_disk(tmp_path, numbered(400)), on_disk(tmp_path, numbered(400))
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        orders = [
            [torch.cat([batch.rows for batch in rows.shuffled(50, generator)]) for _ in range(2)]
            for rows, generator in zip((one, other), generators, strict=True)
        ]
        assert torch.equal(orders[0][0], orders[1][0])
        assert torch.equal(orders[0][1], orders[1][1])
        assert not torch.equal(orders[0][0], orders[0][1])

    def test_each_block_has_rows_of_the_whole_window(self, tmp_path: Path) -> None:
        rows = on_disk(tmp_path, numbered(7000), blocks=10)
        for block in range(10):
            indices = rows._read(block)[:, 0].numpy()
            assert 690 <= len(indices) <= 710
            shares = np.histogram(indices, bins=10, range=(0, 7000))[0] / len(indices)
            assert shares.min() > 0.06, "each tenth of the window is about a tenth of each block"

    def test_rows_keep_their_latents(self, tmp_path: Path) -> None:
        latents = numbered(300)[:, :1] * 2
        stored = on_disk(tmp_path, numbered(300), latents=latents)
        in_memory = InMemory(torch.from_numpy(numbered(300)), torch.from_numpy(latents))
        for batches in (rows.shuffled(32, torch.Generator().manual_seed(0)) for rows in (stored, in_memory)):
            count = 0
            for batch in batches:
                assert batch.latents is not None
                torch.testing.assert_close(batch.latents[:, 0], batch.rows[:, 0] * 2)
                count += len(batch.rows)
            assert count == 300

    def test_the_mean_is_over_all_rows(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).normal(size=(501, 4)).astype(np.float32)
        np.testing.assert_allclose(on_disk(tmp_path, values).mean(), values.mean(0), atol=1e-6)
        np.testing.assert_allclose(InMemory(torch.from_numpy(values)).mean(), values.mean(0), atol=1e-6)

    def test_the_file_has_no_name(self, tmp_path: Path) -> None:
        rows = on_disk(tmp_path / "scratch", numbered(100))
        assert len(rows) == 100
        assert list((tmp_path / "scratch").iterdir()) == []

    @pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a device that is always full")
    def test_a_full_disk_is_an_error_with_a_remedy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: FULL.open("r+b", buffering=0))
        with pytest.raises(StorageError, match=r"no space left while writing .*free some space and run again"):
            on_disk(tmp_path, numbered(100))

    def test_blocks_hold_a_batch_and_stay_within_their_bytes(self) -> None:
        assert blocks_for(1000, 10, 1000, 1) == 10
        assert blocks_for(1000, 10, 10, 500) == 2
        assert blocks_for(5, 10, 10**6, 512) == 1


class TestBatches:
    @pytest.mark.parametrize("at_once", [1, 7, 60, 100, 10_000])
    @pytest.mark.parametrize("part", PARTS)
    def test_the_batch_size_does_not_change_the_rows(self, fitted: Fitted, part: str, at_once: int) -> None:
        batches = list(fitted.window.batches(part, fitted.paths, at_once=at_once))
        assert pl.concat(batches).equals(fitted.window.rows(part, fitted.paths))
        assert fitted.window.count(part, fitted.paths) == sum(rows.height for rows in batches)
        assert max(rows.height for rows in batches) <= max(at_once, 1)

    @pytest.mark.parametrize("split_by", [(), ("site",)])
    @pytest.mark.parametrize("only_normal", [False, True])
    def test_nor_for_rows_without_event_time(
        self, tmp_path: Path, split_by: tuple[str, ...], only_normal: bool
    ) -> None:
        rng = np.random.default_rng(0)
        paths = DatasetPaths(tmp_path, "d")
        table = pl.DataFrame(
            {
                "row_id": [f"row {index}" for index in range(5000)],
                "site": rng.integers(0, 40, 5000),
                "is_known_anomaly": [[True, False, None][kind] for kind in rng.integers(0, 3, 5000)],
            }
        )
        write_parquet(paths.features(ALL_ROWS), table.to_arrow())
        whole = (ALL_ROWS,)
        window = Window(
            train=whole,
            validation=whole,
            calibration=whole,
            fingerprint="",
            split_by=split_by,
            only_normal=only_normal,
            gate=whole,
        )
        row_ids = []
        for part in (*PARTS, GATE):
            rows = window.rows(part, paths)
            assert pl.concat(window.batches(part, paths, at_once=999)).equals(rows)
            assert window.count(part, paths) == rows.height
            row_ids += rows["row_id"].to_list()
        kept = table.filter(~pl.col("is_known_anomaly").fill_null(value=False)) if only_normal else table
        assert sorted(row_ids) == sorted(kept["row_id"])

    def test_large_images_are_read_in_small_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = DatasetPaths(tmp_path, "pictures")
        images = [bytes([number]) * 10_000 for number in range(50)]
        rows = pl.DataFrame({"row_id": [str(number) for number in range(50)], "image": images})
        monkeypatch.setattr("ae_pipeline.storage.parquet._BATCH_BYTES", 100_000)
        write_parquet(paths.features("2024-01-01"), rows.to_arrow())
        window = Window(train=("2024-01-01",), validation=(), calibration=(), fingerprint="")
        assert pq.read_metadata(paths.features("2024-01-01")).num_row_groups == 6
        assert {batch.height for batch in window.batches("train", paths)} == {9, 5}
        assert [batch.height for batch in window.batches("train", paths, ["row_id"])] == [50]

    def test_a_sample_is_reproducible_and_covers_all_days(self, fitted: Fitted) -> None:
        rows = fitted.window.rows("train", fitted.paths)
        some = fitted.window.rows("train", fitted.paths, ["row_id", "event_time"], most=400)
        assert some.equals(fitted.window.rows("train", fitted.paths, ["row_id", "event_time"], most=400))
        assert 300 < some.height < 500
        assert some["event_time"].is_sorted()
        assert some["row_id"].is_in(rows["row_id"].implode()).all()
        days = some["event_time"].dt.date().n_unique()
        assert days == len(fitted.window.train)
        assert fitted.window.rows("train", fitted.paths, most=rows.height).equals(rows)

    def test_a_part_without_rows_is_an_error_with_the_counts(self, tmp_path: Path) -> None:
        paths = DatasetPaths(tmp_path, "d")
        table = pl.DataFrame({"row_id": ["a", "b"], "is_known_anomaly": [True, True]})
        write_parquet(paths.features("2024-01-01"), table.to_arrow())
        window = Window(train=("2024-01-01",), validation=(), calibration=(), fingerprint="", only_normal=True)
        with pytest.raises(TrainingError, match="2 rows, of which 0 are not known anomalies; land more"):
            window.rows("train", paths)

    def test_samples_depend_on_the_identity_alone(self) -> None:
        rows = pl.DataFrame({"row_id": [f"r{index}" for index in range(2000)]})
        few = sample_rows(rows, 100, seed=5)
        assert few.height == 100
        assert set(sample_rows(rows.reverse(), 100, seed=5)["row_id"]) == set(few["row_id"])
        assert sample_rows(rows, 2000, seed=5) is rows
        some = sample_by_hash(rows, 0.25)
        assert some.height == pytest.approx(500, abs=80)
        in_two = [sample_by_hash(rows.head(1000), 0.25), sample_by_hash(rows.tail(1000), 0.25)]
        assert pl.concat(in_two).equals(some)
        assert sample_by_hash(rows, 1.0) is rows


def correlated(count: int) -> pl.DataFrame:
    """Return six columns and a category that depend on two hidden numbers."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(count, 2))
    values = hidden @ np.random.default_rng(99).normal(size=(2, 6)) + 0.05 * rng.normal(size=(count, 6))
    kind = np.where(hidden[:, 0] > 0, "up", "down")
    return pl.DataFrame(values, schema=[f"x{index}" for index in range(6)]).with_columns(kind=pl.Series(kind))


COLUMNS = (
    *(FeatureColumn(f"x{index}", ColumnType.NUMBER) for index in range(6)),
    FeatureColumn("kind", ColumnType.CATEGORY),
)
Fit = tuple[ModelBundle, TrainingResult]
TRAINING: dict[str, Any] = {"epochs": 6, "batch_size": 128, "device": "cpu", "learning_rate": 0.01}


class TestStreamedTraining:
    @pytest.fixture(scope="class")
    def both(self, fit_frame: FitFrame) -> tuple[Fit, Fit]:
        """Two models of the same rows: trained from memory and, with a small memory budget, from disk."""
        rows, model = correlated(40_000), {"latent_dim": 2, "hidden": [16]}
        whole = fit_frame(rows, COLUMNS, model=model, training=TRAINING)
        streamed = fit_frame(rows, COLUMNS, model=model, training={**TRAINING, "memory_budget": "1MiB"})
        return whole, streamed

    def test_it_is_streamed_only_beyond_the_memory_budget(self, both: tuple[Fit, Fit]) -> None:
        (bundle, result), (streamed_bundle, streamed) = both
        assert (result.is_streamed, streamed.is_streamed) == (False, True)
        assert bundle.facts.rows == streamed_bundle.facts.rows
        assert bundle.facts.rows_looked_at["train"] == bundle.facts.rows["train"]
        assert streamed_bundle.facts.rows_looked_at["train"] < bundle.facts.rows["train"] / 4

    def test_it_reaches_the_same_loss(self, both: tuple[Fit, Fit]) -> None:
        (_, whole), (_, streamed) = both
        saved = whole.first_loss - whole.best_loss
        assert saved > 1
        assert streamed.best_loss == pytest.approx(whole.best_loss, abs=0.05 * saved)
        assert len(streamed.epochs) == len(whole.epochs)

    def test_scores_rank_rows_alike_and_flag_the_budget(self, both: tuple[Fit, Fit]) -> None:
        (whole, _), (streamed, _) = both
        fresh = correlated(60_000).tail(20_000)
        scores = [bundle.score(fresh.with_columns(row_id=pl.lit(""))) for bundle in (whole, streamed)]
        ranks = [one.score.argsort().argsort() for one in scores]
        assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.9
        for one in scores:
            assert one.is_anomaly.mean() == pytest.approx(0.02, abs=0.006)

    def test_it_is_reproducible(self, both: tuple[Fit, Fit], fit_frame: FitFrame) -> None:
        again = fit_frame(
            correlated(40_000),
            COLUMNS,
            model={"latent_dim": 2, "hidden": [16]},
            training={**TRAINING, "memory_budget": "1MiB"},
        )[0]
        assert again.fingerprint == both[1][0].fingerprint

    def test_it_keeps_latents_near_those_of_the_previous_model(
        self, both: tuple[Fit, Fit], fit_frame: FitFrame
    ) -> None:
        previous = both[0][0]
        after, result = fit_frame(
            correlated(40_000),
            COLUMNS,
            previous,
            model={"latent_dim": 2, "hidden": [16]},
            training={**TRAINING, "memory_budget": "1MiB", "warm_start": False, "anchor": 1.0},
        )
        assert (result.is_streamed, result.is_anchored) == (True, True)
        rows = correlated(2000)
        target, latents = previous.encode(rows), after.encode(rows)
        assert np.square(latents - target).mean() < 0.05 * target.var()

    def test_wide_encoded_rows_alone_can_exceed_the_budget(self, fit_frame: FitFrame) -> None:
        rng = np.random.default_rng(0)
        frame = pl.DataFrame({"x": rng.normal(size=12_000), "c": [f"name {i % 400}" for i in range(12_000)]})
        columns = (FeatureColumn("x", ColumnType.NUMBER), FeatureColumn("c", ColumnType.CATEGORY))
        training = {**TRAINING, "epochs": 1, "memory_budget": "4MiB"}
        bundle, result = fit_frame(frame, columns, training=training, alerts={"budget": 0.02, "evidence": NO_ENSEMBLE})
        assert result.is_streamed
        assert bundle.facts.rows_looked_at["train"] == bundle.facts.rows["train"]

    def test_the_ensemble_gets_both_samples_in_proportion(self, fit_frame: FitFrame) -> None:
        training = {**TRAINING, "epochs": 1, "memory_budget": "1MiB"}
        sections = {"model": {"latent_dim": 2, "hidden": [16]}, "alerts": {"budget": 0.02}}
        bundle, result = fit_frame(correlated(40_000), COLUMNS, training=training, **sections)
        assert result.is_streamed
        assert bundle.detector.ensemble is not None
        rows = bundle.facts.rows
        share = 20_000 / (rows["train"] + rows["validation"])
        expected = min(bundle.facts.rows_looked_at["train"], share * rows["train"]) + share * rows["validation"]
        assert int(bundle.detector.ensemble.seen) == pytest.approx(expected, abs=2)


class TestMemory:
    def test_the_memory_of_a_container_is_its_limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = memory.machine_memory()
        assert whole > 2**28
        groups = tmp_path / "groups"
        groups.write_text("0::/\n")
        monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
        monkeypatch.setattr(cgroup, "_GROUPS", groups)
        limit = tmp_path / "memory.max"
        limit.write_text("max\n")
        assert memory.machine_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit.write_text("268435456\n")
        assert memory.machine_memory() == 2**28

    @pytest.mark.parametrize(("gigabytes", "budget"), [(8, 2), (16, 4), (64, 4)])
    def test_large_machines_have_the_same_default_budget(
        self,
        make_config: Callable[..., PipelineConfig],
        monkeypatch: pytest.MonkeyPatch,
        gigabytes: int,
        budget: int,
    ) -> None:
        monkeypatch.setattr(memory_budget, "machine_memory", lambda: gigabytes << 30)
        assert memory_budget.share_of(make_config()) == (budget << 30) // 4
        assert memory_budget.share_of(make_config(training={"memory_budget": "1GiB"})) == 2**28

    @pytest.mark.parametrize(
        ("kilobytes", "rows"), [(1, 4096), (16, 4096), (64, 1024), (1024, 64), (20_000, 64)], ids=str
    )
    def test_a_few_rows_are_in_memory_whatever_the_budget_is(self, kilobytes: int, rows: int) -> None:
        assert memory_budget.rows_within(1, kilobytes << 10) == rows
        assert memory_budget.rows_within(100 << 30, kilobytes << 10) == (100 << 20) // kilobytes

    def test_images_are_bounded_in_bytes(self, tmp_path: Path) -> None:
        paths = DatasetPaths(tmp_path, "pictures")
        rows = pl.DataFrame({"row_id": [str(number) for number in range(300)], "image": [b"x" * 2**20] * 300})
        write_parquet(paths.features(ALL_ROWS), rows.to_arrow())
        window = Window(train=(ALL_ROWS,), validation=(ALL_ROWS,), calibration=(ALL_ROWS,), fingerprint="")
        assert memory_budget.max_rows(window, paths, 10 << 20) == 64
        assert memory_budget.max_rows(window, paths, 100 << 20) == pytest.approx(100, abs=1)
        assert 20 < window.rows("train", paths, most=64).height < 110

    def test_a_budget_without_a_unit_is_rejected(self, make_config: Callable[..., PipelineConfig]) -> None:
        with pytest.raises(ValueError, match="memory_budget"):
            make_config(training={"memory_budget": 64})
        assert make_config(training={"memory_budget": "64MiB"}).training.memory_budget == 64 * 2**20


def test_a_daily_window_is_streamed_and_sampled_at_one_rate(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "MIN_ROWS", 300)
    monkeypatch.setattr(memory_budget, "share_of", lambda _: 20_000)
    first = next(fitted.window.batches("train", fitted.paths, at_once=150))
    assert first["event_time"].dt.date().n_unique() == 2, "small days are read together"
    bundle, result = fit_bundle(fitted, fitted.columns, fitted.window)
    assert result.is_streamed
    rows = bundle.facts.rows
    assert rows == fitted.bundle.facts.rows
    assert bundle.facts.rows_looked_at["train"] < rows["train"] / 2
    assert len(bundle.calibration.scores) == rows["calibration"]
    sampled: dict[str, int] = {}
    read = Window.rows

    def spy(self: Window, part: str, *arguments: Any, **named: Any) -> pl.DataFrame:
        sample = read(self, part, *arguments, **named)
        sampled.setdefault(part, sample.height)
        return sample

    monkeypatch.setattr(Window, "rows", spy)
    with_reference(bundle, fitted.columns, fitted.paths)
    shares = [sampled[part] / rows[part] for part in PARTS]
    assert max(shares) < 0.5
    assert max(shares) - min(shares) < 0.12
