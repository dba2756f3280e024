"""Defects on brick: AUROC of ae_pipeline, PCA and PyOD's autoencoders on patches of a held-out region.

All learn from the same patches of the upper rows of the photograph; of these ae_pipeline sets three tenths aside, by
tile, to stop early and to calibrate. Settings were tried out within the upper rows alone (`LEARNING` and `TUNING`),
with defects planted there.
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
"""Gives patches, (n, height, width), a score each; the higher, the stranger."""

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
"""Forms of ours: what each changes of `MODEL` and of `TRAIN`."""

STRIDE = 4
PCA_WIDTHS = (128, 256, 512, 700, 850)


@dataclass(frozen=True)
class Setting:
    """Patches to learn from and to be judged by.

    Attributes:
        training: Brick.
        tiles: Of each of them.
        clean: Brick of other rows.
        strange: By task: defects planted into the clean patches, and patches of other textures.
    """

    training: Pixels
    tiles: Sequence[str]
    clean: Pixels
    strange: Mapping[str, Pixels]

    def auroc(self, score: Score) -> dict[str, float]:
        """Gives the AUROC of each task, strange patches against clean ones."""
        clean = score(self.clean)
        strange = {task: score(patches) for task, patches in self.strange.items()}
        strange = {"all defects": np.concatenate([strange[kind] for kind in DEFECTS]), **strange}
        return {task: auroc(clean, scores) for task, scores in strange.items()}


def prepare(seed: int, learn: slice = TRAINING, compare: slice = TEST, stride: int = STRIDE) -> Setting:
    """Cuts patches and plants defects.

    Args:
        seed: Of the planting.
        learn: Rows of the brick to learn from.
        compare: Rows of brick, grass and gravel to be judged by.
        stride: Pixels from one training patch to the next; of the judging ones it is 16.
    """
    rows = {texture: photograph(texture)[compare] for texture in TEXTURES}
    training, tiles = cut_tiles(photograph("brick")[learn], stride)
    clean = cut(rows["brick"], 16)
    strange = {kind: plant(clean, kind, rows.get(kind.split()[0]), seed) for kind in DEFECTS}
    strange |= {f"whole {texture}": cut(rows[texture], 16) for texture in ("grass", "gravel")}
    return Setting(training, tiles, clean, strange)


def auroc(normal: Values, strange: Values) -> float:
    """Gives the share of pairs of which the strange one has the higher score, ties by half."""
    truth = np.repeat([0, 1], [len(normal), len(strange)])
    return float(roc_auc_score(truth, np.concatenate([normal, strange])))


def fit_ours(form: str, setting: Setting, seed: int, **training: Any) -> Score:
    """Fits one of `FORMS`; further keyword arguments replace settings of the training."""
    model, own = FORMS[form]
    settings = {**TRAIN, **own, **training}
    bundle = fit_images(setting.training, seed, {**MODEL, **model}, settings, setting.tiles, ALERTS)
    return lambda patches: bundle.score(image_frame(patches)).score


def fit_pca(width: int, setting: Setting, seed: int) -> Score:
    """Fits principal components; the score is the squared error of the reconstruction."""
    fitted = PCA(width, random_state=seed).fit(_flat(setting.training))

    def score(patches: Pixels) -> Values:
        rows = _flat(patches)
        errors: Values = np.square(rows - fitted.inverse_transform(fitted.transform(rows))).mean(axis=1)
        return errors

    return score


def fit_pyod(detector: type, setting: Setting, seed: int) -> Score:
    """Fits a detector of PyOD with its defaults."""
    fitted = detector(random_state=seed, verbose=0)
    fitted.fit(_flat(setting.training))
    return lambda patches: np.asarray(fitted.decision_function(_flat(patches)), dtype=np.float64)


def _flat(patches: Pixels) -> Values:
    rows: Values = patches.reshape(len(patches), -1) / 255
    return rows


def best_pca_width() -> int:
    """Chooses the width of PCA that tells defects best which are planted into the training region's lowest rows."""
    setting = prepare(0, LEARNING, TUNING)
    return max(PCA_WIDTHS, key=lambda width: setting.auroc(fit_pca(width, setting, 0))["all defects"])


def measure(seeds: Sequence[int]) -> Iterator[Measure]:
    """Fits every method with every seed and measures it on the held-out rows."""
    wide = best_pca_width()
    methods: dict[str, Callable[[Setting, int], Score]] = {form: partial(fit_ours, form) for form in FORMS}
    methods |= {f"PCA, {width} latents": partial(fit_pca, width) for width in dict.fromkeys((LATENTS, wide))}
    methods |= {"PyOD AutoEncoder": partial(fit_pyod, AutoEncoder), "PyOD VAE": partial(fit_pyod, VAE)}
    for seed in seeds:
        setting = prepare(seed)
        for method, fit in methods.items():
            for task, value in setting.auroc(fit(setting, seed)).items():
                yield Measure(f"textures, {task}", method, "AUROC", value, seed)
