"""The package uses the field's standard terms; `vocabulary.py` lists the names that they replace."""

from pathlib import Path

import pytest

from tests.contract.vocabulary import modules, replaced_names

ROOT = Path(__file__).parents[2]
PATHS = [path for folder in ("ae_pipeline", "benchmarks") for path in modules(ROOT / folder)]


def test_all_modules_are_checked() -> None:
    assert len(PATHS) > 120


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_has_no_replaced_name(path: Path) -> None:
    assert list(replaced_names(path)) == []


def test_replaced_names_are_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def tell_all(words):\n    told = spread(words.own)\n    return told\n")
    assert sorted({name for _, name in replaced_names(module)}) == ["own", "spread", "tell_all", "told", "words"]
