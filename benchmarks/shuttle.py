"""Anomalies of the shuttle's sensors: the shipped variational autoencoder and PyOD's two autoencoders.

Each method learns from a random 70 % of the readings, including anomalies, without labels. It scores the other 30 %.
"""

import datetime as dt
import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.vae import VAE
from sklearn.metrics import average_precision_score, roc_auc_score

from ae_pipeline.cli.demo import land_shuttle
from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.build import build_features, feature_columns
from ae_pipeline.features.split import LABEL
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from benchmarks.frames import fit_frame
from benchmarks.measures import Measure

TRAINING_SHARE = 0.7
BATCH = 256
"""Batch size of PyOD. Its default of 32 takes many times as long."""


def prepare() -> tuple[PipelineConfig, tuple[FeatureColumn, ...], pl.DataFrame]:
    """Land the readings and run the stages of the pipeline on them, with the shipped configuration.

    Returns:
        The configuration, which ignores labels; names and types of the features; the features with the label.
    """
    shipped = files("ae_pipeline").joinpath("defs/shuttle/defs.yaml").read_text(encoding="utf-8")
    config = PipelineConfig.model_validate(yaml.safe_load(shipped)["attributes"])
    with tempfile.TemporaryDirectory() as folder:
        paths = DatasetPaths(Path(folder), config.dataset)
        land_shuttle(paths.landing)
        intake = ingest(Dataset(config, paths), dt.date.today())
        build_raw_day(ALL_ROWS, intake, paths)
        features = build_features(pl.read_parquet(paths.raw(ALL_ROWS)), config, intake.contract)
    training = config.training.model_copy(update={"only_normal": False, "device": "cpu"})
    return config.model_copy(update={"training": training}), feature_columns(config, intake.contract), features


def measure(seeds: Sequence[int]) -> Iterator[Measure]:
    """Fit every method with every seed and measure it on the other readings."""
    config, columns, features = prepare()
    names = [column.name for column in columns]
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(features.height)
        train, test = np.split(order, [round(TRAINING_SHARE * features.height)])
        rows, held_out = features[train].drop(LABEL), features[test].drop(LABEL)
        seeded = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
        scores: dict[str, npt.NDArray[np.floating]] = {
            "ae_pipeline VAE, as shipped": fit_frame(seeded, rows, columns).score(held_out).score
        }
        for peer in (AutoEncoder, VAE):
            detector = peer(batch_size=BATCH, random_state=seed, verbose=0)
            detector.fit(rows.select(names).to_numpy())
            scores[f"PyOD {peer.__name__}"] = detector.decision_function(held_out.select(names).to_numpy())
        truth = features[test][LABEL].to_numpy()
        for method, score in scores.items():
            yield Measure("shuttle", method, "AUROC", float(roc_auc_score(truth, score)), seed)
            yield Measure("shuttle", method, "average precision", float(average_precision_score(truth, score)), seed)
