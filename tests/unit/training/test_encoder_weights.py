"""A training can start from the weights of an encoder in a file."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.bundle_files import WEIGHTS
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.factory import build_model
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.encoder_weights import load_encoder_weights, read_encoder_weights
from tests.support.datasets import assert_says
from tests.support.sensors import FitFrame

MODEL: dict[str, Any] = {"architecture": "conv", "channels": [4, 6], "latent_dim": 3}


def network(seed: int, side: int = 8, **model: Any) -> AutoEncoder:
    """Return a network with random weights for square images."""
    config = PipelineConfig.model_validate({"dataset": "d", "identity": ["f"], "images": {}, "model": MODEL | model})
    return build_model(config, (1, side, side), torch.Generator().manual_seed(seed))


def dataset(root: Path, name: str) -> Dataset:
    """Return a dataset whose configuration names a file of weights."""
    training = {"encoder_weights": name}
    config = PipelineConfig.model_validate({"dataset": "d", "identity": ["f"], "images": {}, "training": training})
    return Dataset(config, DatasetPaths(root / "data", "d", project=root))


def stored(root: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write tensors into a file of the project, and return those that a dataset reads from it."""
    save_file(tensors, root / "w.safetensors")
    return read_encoder_weights(dataset(root, "w.safetensors"))


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder."])
def test_all_layers_are_copied_and_other_parts_stay(prefix: str, tmp_path: Path) -> None:
    old, new = network(0), network(1)
    decoder = {name: value.clone() for name, value in new.decoder.state_dict().items()}
    others = {"model.decoder.9.weight": torch.zeros(2), "tails.excess": torch.zeros(2)} if prefix else {}
    weights = {prefix + name: value for name, value in old.encoder.state_dict().items()}
    load_encoder_weights(new, stored(tmp_path, weights | others))
    torch.testing.assert_close(dict(new.encoder.state_dict()), dict(old.encoder.state_dict()))
    torch.testing.assert_close(dict(new.decoder.state_dict()), decoder)


def with_biases(model: AutoEncoder) -> dict[str, torch.Tensor]:
    """Return the tensors of an encoder, with biases as after a training. Before it, they are zero."""
    return {name: value + 7 if name.endswith("bias") else value for name, value in model.encoder.state_dict().items()}


def test_dense_layers_of_another_size_keep_their_weights_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, untouched = with_biases(network(0, side=16)), network(1), network(1)
    with caplog.at_level("INFO", "ae_pipeline"):
        load_encoder_weights(new, stored(tmp_path, old))
    expected = {name: old[name] for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    torch.testing.assert_close(dict(new.encoder.state_dict()), untouched.encoder.state_dict() | expected)
    assert_says(
        caplog.messages[-1], r"starts from given weights of 0\.weight, 0\.bias, .*; 5\.0\.weight, 5\.0\.bias do not fit"
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ({"channels": [4, 5]}, {}, r"has 5×4×3×3 for the layer 2\.weight .* 6×4×3×3; .*model\.channels"),
        ({"channels": [4]}, {}, r"has nothing for the layer 2\.weight"),
        ({"architecture": "dense", "hidden": [7]}, {}, r"has nothing for the layer 0\.weight"),
        ({}, {"architecture": "dense", "hidden": [7]}, r"has nothing for the layer 1\.0\.weight .* of shape 7×64"),
    ],
)
def test_a_first_layer_or_convolutions_that_do_not_fit_are_refused(
    old: dict[str, Any], new: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_encoder_weights(network(1, **new), stored(tmp_path, with_biases(network(0, **old))))
    assert_says(str(error.value), says)


def test_dense_layers_behind_other_inputs_are_not_copied(tmp_path: Path) -> None:
    dense: dict[str, Any] = {"architecture": "dense", "hidden": [7]}
    with pytest.raises(ConfigError, match=r"has 7×256 for the layer 1\.0\.weight"):
        load_encoder_weights(network(1, **dense), stored(tmp_path, with_biases(network(0, side=16, **dense))))


def test_tensors_of_other_types_beside_the_encoder_do_not_matter(tmp_path: Path) -> None:
    weights = with_biases(network(0))
    half = {f"encoder.{name}": value.bfloat16() for name, value in weights.items()}
    read = stored(
        tmp_path, half | {"other": torch.zeros(2, dtype=torch.float8_e4m3fn), "encoder.n": torch.ones(2).long()}
    )
    assert read.keys() == weights.keys()
    torch.testing.assert_close(read["2.bias"], weights["2.bias"], rtol=1e-2, atol=1e-2)


def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder_weights: w.safetensors: .*cannot be read \(No such file"):
        read_encoder_weights(dataset(tmp_path, "w.safetensors"))
    with pytest.raises(ConfigError, match=r"cannot be read \(embedded null byte\)"):
        read_encoder_weights(dataset(tmp_path, "w\0"))
    (tmp_path / "w.safetensors").write_bytes(b"PK\3\4 a file of another kind")
    with pytest.raises(ConfigError, match=r"is not a safetensors file \(.*\); save the weights as one"):
        read_encoder_weights(dataset(tmp_path, "w.safetensors"))
    for tensors in ({}, {"0.weight": torch.zeros((4, 1, 3, 3), dtype=torch.int8)}):
        with pytest.raises(ConfigError, match="has no tensor of floating-point numbers; save the weights as such"):
            stored(tmp_path, tensors)
    with pytest.raises(ConfigError, match=r"0.weight has values that are not finite"):
        stored(tmp_path, {"0.weight": torch.full((4, 1, 3, 3), torch.nan)})


def test_a_training_starts_from_the_encoder_of_another_bundle(fit_frame: FitFrame, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 64), dtype=np.uint8)
    images = pl.DataFrame({"image": pl.Series([row.tobytes() for row in pixels], dtype=pl.Binary)})
    shape = ImageShape(height=8, width=8, channels=1, dtype="uint8")
    columns = [FeatureColumn("image", ColumnType.IMAGE, shape)]
    still = {"epochs": 1, "batch_size": 64, "device": "cpu", "learning_rate": 1e-12, "weight_decay": 0}

    def fit(previous: ModelBundle | None = None, **training: Any) -> AutoEncoder:
        sections = {"images": {}, "model": MODEL, "alerts": {"budget": 0.1, "evidence": ["columns", "row"]}}
        bundle, _ = fit_frame(images, columns, previous, training={**still, **training}, **sections)
        bundle.save(tmp_path)
        return bundle.model

    first, second = fit(), fit(seed=1)
    third = fit(seed=1, encoder_weights=str(tmp_path / WEIGHTS))
    fourth = fit(seed=2, encoder_weights=str(tmp_path / WEIGHTS))
    assert not torch.allclose(first.encoder[0].weight, second.encoder[0].weight)  # type: ignore[index]
    for name, value in second.encoder.state_dict().items():
        torch.testing.assert_close(third.encoder.state_dict()[name], value)
        torch.testing.assert_close(fourth.encoder.state_dict()[name], value)
    champion = ModelBundle.load(tmp_path)
    fifth = fit(champion, seed=3, encoder_weights="moved.safetensors")  # a retraining does not need the file
    torch.testing.assert_close(dict(fifth.encoder.state_dict()), dict(fourth.encoder.state_dict()))
