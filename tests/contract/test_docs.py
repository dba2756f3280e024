"""The site's hooks: the page on the YAML is complete, patterns become pages, and no page needs a network."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args, get_origin

import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from pydantic import BaseModel

from ae_pipeline.config.pipeline import PipelineConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The module with the hooks of mkdocs."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Return the dotted names of all keys that hold a value."""
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        parts = () if get_origin(field.annotation) is dict else get_args(field.annotation)  # a mapping is one key
        kinds = [kind for kind in (field.annotation, *parts) if isinstance(kind, type)]
        sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
        keys |= keys_of(sections[0], f"{prefix}{name}.") if sections else {f"{prefix}{name}"}
    return keys


class TestConfigurationPage:
    def test_it_lists_every_key_of_every_section_once(self, hooks: ModuleType) -> None:
        page, _, contract = hooks.configuration_page().partition("## The schema contract")
        keys = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
        assert sorted(keys) == sorted(keys_of(PipelineConfig))
        assert {"identity", "model.latent_dim", "gate.days", "alerts.budget"} < set(keys)
        assert "| `null_values` |" in contract

    def test_a_row_has_type_default_and_description(self, hooks: ModuleType) -> None:
        rows = {
            line.split("`")[1]: line.split(" | ") for line in hooks.configuration_page().splitlines() if "| `" in line
        }
        assert rows["training.epochs"][1:3] == ["integer ≥ 1", "`12`"]
        assert rows["dataset"][2] == "required"
        assert rows["model.scaling"][1:3] == ["`robust`, `standard`, `unit`, `symmetric`", "not set"]
        assert all(len(row) == 4 and len(row[3]) > len(" |") for row in rows.values() if row[0] != "| `type`")


class TestNavigation:
    def test_a_pattern_becomes_its_pages_with_the_index_first(self, hooks: ModuleType, tmp_path: Path) -> None:
        for name in ("b.md", "a.md", "index.md"):
            (tmp_path / "notes").mkdir(exist_ok=True)
            (tmp_path / "notes" / name).touch()
        config = MkDocsConfig()
        config.load_dict(
            {
                "docs_dir": str(tmp_path),
                "nav": [{"Home": "index.md"}, {"Notes": "notes/*.md"}, {"Nothing": "none/*.md"}],
            }
        )
        assert hooks.on_config(config).nav == [
            {"Home": "index.md"},
            {"Notes": ["notes/index.md", "notes/a.md", "notes/b.md"]},
        ]


class TestAssets:
    PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))

    @pytest.mark.parametrize(
        "tag",
        [
            '<script src="https://cdn.example/x.js"></script>',
            '<img alt="" src="//example/x.png">',
            '<link rel="stylesheet" href="https://fonts.example/css">',
        ],
    )
    def test_a_page_that_loads_a_remote_file_is_an_error(self, hooks: ModuleType, tag: str) -> None:
        with pytest.raises(PluginError, match=r"page\.md loads .*example"):
            hooks.on_post_page(f"<p>{tag}</p>", self.PAGE, MkDocsConfig())

    @pytest.mark.parametrize("tag", ['<a href="https://example">', '<script src="assets/x.js">', '<img src="a.png">'])
    def test_links_and_files_of_the_site_are_allowed(self, hooks: ModuleType, tag: str) -> None:
        assert hooks.on_post_page(tag, self.PAGE, MkDocsConfig()) == tag
