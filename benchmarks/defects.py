"""Defects on brick: AUROC of ae_pipeline, PCA and PyOD's autoencoders on patches of a held-out region.

All methods learn from the same patches of the upper rows of the photograph. ae_pipeline reserves three tenths of them,
by tile, for early stopping and calibration. Settings were chosen within the upper rows only (`LEARNING` and `TUNING`),
on defects planted there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.vae import VAE
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from benchmarks.frames import fit_images, image_frame
from benchmarks.measures import Measure
from benchmarks.textures import (
    DEFECTS,
    LEARNING,
    TEST,
    TEXTURES,
    TRAINING,
    TUNING,
    Pixels,
    Values,
    cut,
    cut_tiles,
    photograph,
    plant,
)

Score = Callable[[Pixels], Values]
"""Function from patches, (n, height, width), to scores, (n,); a higher score is more anomalous."""

LATENTS = 512
MODEL: Mapping[str, Any] = {
    "architecture": "conv",
    "channels": [16],
    "up": "upsample",
    "activation": "gelu",
    "scaling": "standard",
    "latent_dim": LATENTS,
}
TRAIN: Mapping[str, Any] = {"epochs": 20, "batch_size": 64, "learning_rate": 4e-3}
ALERTS: Mapping[str, Any] = {"evidence": ["columns", "row"]}
FORMS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "ae_pipeline ConvAE": ({}, {}),
    "ae_pipeline ConvVAE": ({"variational": True}, {"beta": 1e-4}),
    "ae_pipeline denoising ConvAE": ({}, {"corruption": "gaussian", "corruption_level": 0.2}),
}
"""Variants of our model: the changes of each to `MODEL` and to `TRAIN`."""

STRIDE = 4
PCA_WIDTHS = (128, 256, 512, 700, 850)


@dataclass(frozen=True)
class Setting:
    """Patches for training and evaluation.

    Attributes:
        training: Training patches of brick.
        tiles: Tile of each training patch.
        clean: Clean test patches of brick, from other rows.
        anomalous: Anomalous patches by task: clean patches with planted defects, and patches of other textures.
    """

    training: Pixels
    tiles: Sequence[str]
    clean: Pixels
    anomalous: Mapping[str, Pixels]

    def auroc(self, score: Score) -> dict[str, float]:
        """Return the AUROC of each task, anomalous patches against clean ones."""
        clean = score(self.clean)
        anomalous = {task: score(patches) for task, patches in self.anomalous.items()}
        anomalous = {"all defects": np.concatenate([anomalous[kind] for kind in DEFECTS]), **anomalous}
        return {task: auroc(clean, scores) for task, scores in anomalous.items()}


def prepare(seed: int, learn: slice = TRAINING, evaluation: slice = TEST, stride: int = STRIDE) -> Setting:
    """Cut patches and plant defects.

    Args:
        seed: Seed of the planting.
        learn: Rows of the brick to learn from.
        evaluation: Rows of brick, grass and gravel for the evaluation.
        stride: Pixels from one training patch to the next. Evaluation patches are 16 pixels apart.
    """
    rows = {texture: photograph(texture)[evaluation] for texture in TEXTURES}
    training, tiles = cut_tiles(photograph("brick")[learn], stride)
    clean = cut(rows["brick"], 16)
    anomalous = {kind: plant(clean, kind, rows.get(kind.split()[0]), seed) for kind in DEFECTS}
    anomalous |= {f"whole {texture}": cut(rows[texture], 16) for texture in ("grass", "gravel")}
    return Setting(training, tiles, clean, anomalous)


def auroc(normal: Values, anomalous: Values) -> float:
    """Return the share of pairs whose anomalous patch has the higher score; a tie counts half."""
    truth = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(roc_auc_score(truth, np.concatenate([normal, anomalous])))


def fit_ours(form: str, setting: Setting, seed: int, **training: Any) -> Score:
    """Fit one of `FORMS`. Further keyword arguments override training settings."""
    model, changes = FORMS[form]
    settings = {**TRAIN, **changes, **training}
    bundle = fit_images(setting.training, seed, {**MODEL, **model}, settings, setting.tiles, ALERTS)
    return lambda patches: bundle.score(image_frame(patches)).score


def fit_pca(width: int, setting: Setting, seed: int) -> Score:
    """Fit principal components. The score is the mean squared reconstruction error."""
    fitted = PCA(width, random_state=seed).fit(_flat(setting.training))

    def score(patches: Pixels) -> Values:
        rows = _flat(patches)
        errors: Values = np.square(rows - fitted.inverse_transform(fitted.transform(rows))).mean(axis=1)
        return errors

    return score


def fit_pyod(detector: type, setting: Setting, seed: int) -> Score:
    """Fit a detector of PyOD with its defaults."""
    fitted = detector(random_state=seed, verbose=0)
    fitted.fit(_flat(setting.training))
    return lambda patches: np.asarray(fitted.decision_function(_flat(patches)), dtype=np.float64)


def _flat(patches: Pixels) -> Values:
    rows: Values = patches.reshape(len(patches), -1) / 255
    return rows


def best_pca_width() -> int:
    """Return the width of PCA with the best AUROC on defects in the lowest rows of the training region."""
    setting = prepare(0, LEARNING, TUNING)
    return max(PCA_WIDTHS, key=lambda width: setting.auroc(fit_pca(width, setting, 0))["all defects"])


def measure(seeds: Sequence[int]) -> Iterator[Measure]:
    """Fit every method with every seed and measure it on the held-out rows."""
    wide = best_pca_width()
    methods: dict[str, Callable[[Setting, int], Score]] = {form: partial(fit_ours, form) for form in FORMS}
    methods |= {f"PCA, {width} latents": partial(fit_pca, width) for width in dict.fromkeys((LATENTS, wide))}
    methods |= {"PyOD AutoEncoder": partial(fit_pyod, AutoEncoder), "PyOD VAE": partial(fit_pyod, VAE)}
    for seed in seeds:
        setting = prepare(seed)
        for method, fit in methods.items():
            for task, value in setting.auroc(fit(setting, seed)).items():
                yield Measure(f"textures, {task}", method, "AUROC", value, seed)
