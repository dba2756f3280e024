"""Configuration of version 0.1: its keys still load, and each one warns and names its replacement."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ae_pipeline.common.deprecation import REMOVED_IN
from ae_pipeline.config.pipeline import PipelineConfig

OLD_FILE = Path(__file__).parents[2] / "data" / "defs_0_1.yaml"

RENAMED = [
    ("gate", "most_worse", "max_error_increase", 0.3),
    ("gate", "most_departure", "max_ks_distance", 0.2),
    ("gate", "most_lost", "max_recall_drop", 0.25),
    ("gate", "least_alive", "min_active_latents", 0.75),
    ("latents", "least_explained", "min_explained_variance", 0.8),
    ("latents", "most_condition", "max_condition_number", 500.0),
]


def configuration(**sections: dict[str, Any]) -> PipelineConfig:
    """Validate a small configuration with further sections."""
    return PipelineConfig.model_validate({"dataset": "orders", "identity": ["order_id"], **sections})


def message(section: str, old: str, new: str) -> str:
    """Return the text of the warning about a deprecated key."""
    location = f"section {section} of the YAML"
    return f"{old!r} in {location} is deprecated and will be removed in version {REMOVED_IN}; write {new!r} instead"


@pytest.fixture
def old_file() -> dict[str, Any]:
    """Return the content of a `defs.yaml` of version 0.1."""
    content: dict[str, Any] = yaml.safe_load(OLD_FILE.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(("section", "old", "new", "value"), RENAMED)
def test_a_deprecated_key_warns_once_and_sets_the_new_key(section: str, old: str, new: str, value: float) -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated") as caught:
        config = configuration(**{section: {old: value}})
    assert [str(warning.message) for warning in caught] == [message(section, old, new)]
    assert getattr(getattr(config, section), new) == value
    assert config == configuration(**{section: {new: value}})


@pytest.mark.parametrize(("section", "old", "new", "value"), RENAMED)
def test_a_new_key_does_not_warn(section: str, old: str, new: str, value: float) -> None:
    with warnings.catch_warnings(action="error"):
        config = configuration(**{section: {new: value}})
    assert getattr(getattr(config, section), new) == value
    assert not hasattr(getattr(config, section), old)


@pytest.mark.parametrize(("section", "old", "new", "value"), RENAMED)
def test_a_deprecated_and_its_new_key_together_are_an_error(section: str, old: str, new: str, value: float) -> None:
    expected = rf"{section}\n.*{old}={value} and {new}={value} are the same setting; keep {new} and remove {old}"
    with pytest.raises(ValidationError, match=expected) as caught:
        configuration(**{section: {old: value, new: value}})
    assert caught.value.error_count() == 1


def test_a_deprecated_key_is_unknown_in_another_section() -> None:
    with pytest.raises(ValidationError, match=r"drift\.most_worse\n.*Extra inputs are not permitted"):
        configuration(drift={"most_worse": 0.3})


def test_a_deprecated_key_keeps_the_limits_of_the_new_one() -> None:
    with (
        pytest.warns(DeprecationWarning, match="most_lost"),
        pytest.raises(ValidationError, match=r"gate\.max_recall_drop\n.*less than 1"),
    ):
        configuration(gate={"most_lost": 1.5})


def test_a_whole_file_of_version_0_1_is_valid(old_file: dict[str, Any]) -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated") as caught:
        config = PipelineConfig.model_validate(old_file["attributes"])
    warned = sorted(str(warning.message) for warning in caught)
    assert warned == sorted(message(section, old, new) for section, old, new, _ in RENAMED)
    values = {(section, new): getattr(getattr(config, section), new) for section, _, new, _ in RENAMED}
    assert values == {(section, new): value for section, _, new, value in RENAMED}


def test_a_file_of_version_0_1_uses_every_section(old_file: dict[str, Any]) -> None:
    unused = set(PipelineConfig.model_fields) - set(old_file["attributes"])
    # A dataset is a table or consists of images. Version 0.1 had no zones, titles or ranges, and never asked.
    assert unused == {"images", "timezone", "max_removed_share", "display", "scale"}


def test_the_component_type_of_version_0_1_warns(old_file: dict[str, Any]) -> None:
    module, _, name = old_file["type"].rpartition(".")
    component = getattr(importlib.import_module(module), name)
    current = importlib.import_module("ae_pipeline.orchestration.component").AutoencoderPipeline
    with pytest.warns(DeprecationWarning, match="write 'type: ae_pipeline.orchestration.component.Auto"):
        pipeline = component(configuration())
    assert isinstance(pipeline, current)


def test_dagster_loads_a_file_of_version_0_1(old_file: dict[str, Any]) -> None:
    from dagster.components.testing import create_defs_folder_sandbox

    from ae_pipeline.component import AutoencoderPipeline

    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=AutoencoderPipeline, defs_path="orders", defs_yaml_contents=old_file
        )
        with (
            warnings.catch_warnings(record=True, action="always") as caught,
            sandbox.load_component_and_build_defs(defs_path=path) as (pipeline, _),
        ):
            assert isinstance(pipeline, AutoencoderPipeline)
            gate = pipeline.config.gate
    assert gate.max_error_increase == old_file["attributes"]["gate"]["most_worse"]
    assert {str(warning.message).partition(" in ")[0] for warning in caught} >= {f"'{old}'" for _, old, *_ in RENAMED}
