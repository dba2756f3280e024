"""Latents of handwritten digits: linear probe and trustworthiness of ae_pipeline and of PCA.

All methods are fitted without labels on the training split. ae_pipeline trains on seven tenths of it and uses one tenth
for early stopping. The probe is fitted on the latents of the whole training split. Both figures are measured on the
test split.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import trustworthiness
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.frames import fit_images, image_frame
from benchmarks.measures import Measure

Images = npt.NDArray[np.float32]
Encode = Callable[[Images], npt.NDArray[np.floating]]

WIDTHS = (8, 16)
NEIGHBORS = 12
TEST_SHARE = 0.3

MODEL: Mapping[str, Any] = {"architecture": "dense", "hidden": [512], "tied": True, "activation": "leaky_relu"}
TRAIN: Mapping[str, Any] = {"epochs": 120, "batch_size": 32, "learning_rate": 2e-3, "patience": 30}
FORMS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "ae_pipeline AE": ({"hidden": [1024]}, {}),
    "ae_pipeline VAE": ({"variational": True}, {"beta": 1e-3}),
    "ae_pipeline denoising AE": ({}, {"corruption": "gaussian", "corruption_level": 0.15}),
}
"""Variants of our model: the changes of each to `MODEL` and to `TRAIN`."""


def fit_ours(form: str, images: Images, width: int, seed: int, **training: Any) -> Encode:
    """Fit one of `FORMS`. Further keyword arguments override training settings."""
    model, changes = FORMS[form]
    bundle = fit_images(images, seed, {**MODEL, **model, "latent_dim": width}, {**TRAIN, **changes, **training})
    return lambda rows: bundle.encode(image_frame(rows))


def fit_pca(images: Images, width: int, seed: int) -> Encode:
    """Fit principal components."""
    fitted = PCA(width, random_state=seed).fit(images.reshape(len(images), -1))
    return lambda rows: np.asarray(fitted.transform(rows.reshape(len(rows), -1)))


def evaluate(encode: Encode, train: tuple[Images, Any], test: tuple[Images, Any]) -> dict[str, float]:
    """Return the metrics of the latents, given images and digits of both splits."""
    latents, held_out = encode(train[0]), encode(test[0])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(latents, train[1])
    flat = test[0].reshape(len(test[0]), -1)
    return {
        "probe accuracy": float(probe.score(held_out, test[1])),
        "trustworthiness": float(trustworthiness(flat, held_out, n_neighbors=NEIGHBORS)),
    }


def split(seed: int) -> tuple[tuple[Images, Any], tuple[Images, Any]]:
    """Split images, scaled to 0 to 1, and digits into training and test parts, stratified by digit."""
    images, digits = load_digits(return_X_y=True)
    scaled = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    parts = train_test_split(scaled, digits, test_size=TEST_SHARE, stratify=digits, random_state=seed)
    return (parts[0], parts[2]), (parts[1], parts[3])


def measure(seeds: Sequence[int]) -> Iterator[Measure]:
    """Fit every method with every seed and width and measure its latents."""
    methods: dict[str, Callable[[Images, int, int], Encode]] = {form: partial(fit_ours, form) for form in FORMS}
    methods["PCA"] = fit_pca
    for seed in seeds:
        train, test = split(seed)
        for width in WIDTHS:
            for method, fit in methods.items():
                for metric, value in evaluate(fit(train[0], width, seed), train, test).items():
                    yield Measure(f"digits, {width} latents", method, metric, value, seed)
