"""The package compiles, and its imports of the standard library exist, on the Python versions above the tested one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ae_pipeline"

SCRIPT = """
import ast, importlib.util, sys, warnings
from pathlib import Path

warnings.simplefilter("error")
standard, count = set(sys.argv[2].split()), 0
for path in sorted(Path(sys.argv[1]).rglob("*.py")):
    source = path.read_text(encoding="utf-8")
    compile(source, path, "exec", dont_inherit=True)
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            if name.split(".")[0] in standard and importlib.util.find_spec(name) is None:
                sys.exit(f"{path}: no module {name}")
    count += 1
print(count)
"""


def interpreter(version: str) -> str:
    """Return the path of a CPython of this version, or skip the test."""
    path = shutil.which(f"python{version}")
    command = [path or "", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() if path else ""
    if path is None or found != version:
        pytest.skip(f"no Python {version}, so syntax and imports are not checked on it; put python{version} on PATH")
    return path


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_package_compiles_without_warnings(version: str) -> None:
    command = [interpreter(version), "-c", SCRIPT, str(PACKAGE), " ".join(sys.stdlib_module_names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) == len(list(PACKAGE.rglob("*.py")))
