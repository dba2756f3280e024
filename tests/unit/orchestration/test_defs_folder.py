"""A file of the defs folder with a mistake takes only its own datasets out, and says what is wrong."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from ae_pipeline.orchestration.console import line_logger
from ae_pipeline.orchestration.defs_folder import BrokenFile, DefsFolder, load_defs_folder
from ae_pipeline.orchestration.resources import RunLock, Workspace
from ae_pipeline.orchestration.yaml_errors import is_expected
from ae_pipeline.storage.project import ProjectFolder

TYPE = "ae_pipeline.orchestration.component.AutoencoderPipeline"
GOOD = ("apples", "pears")
_numbers = itertools.count()

Load = Callable[[dict[str, str | bytes]], DefsFolder]


def dataset_yaml(dataset: str, **changes: Any) -> str:
    """Return the YAML of a dataset; keyword arguments replace attributes."""
    attributes = {"dataset": dataset, "identity": ["id"], "event_time": "at", "start": "2024-01-01", **changes}
    return yaml.safe_dump({"type": TYPE, "attributes": attributes}, sort_keys=False)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The defs folder of an empty project, whose package can be imported."""
    package = tmp_path / f"project_{next(_numbers)}"
    (package / "defs").mkdir(parents=True)
    for folder in (package, package / "defs"):
        (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package / "defs"
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


@pytest.fixture
def load(project: Path, tmp_path: Path) -> Load:
    """Function that loads the project with the good datasets and further files, by their path in the defs folder."""

    def load(files: dict[str, str | bytes]) -> DefsFolder:
        for name, content in {**{f"{name}/defs.yaml": dataset_yaml(name) for name in GOOD}, **files}.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_again(project)

    return load


def load_again(project: Path) -> DefsFolder:
    """Load a project whose files are written."""
    workspace = Workspace(data_folder=str(project.parent), mlflow_folder=str(project.parent))
    resources = {"workspace": workspace, "run_lock": RunLock(workspace=workspace)}
    deployment = dg.Definitions(resources=resources, executor=dg.in_process_executor, loggers={"console": line_logger})
    folder = ProjectFolder(project.parents[1], project, f"{project.parent.name}.defs")
    return load_defs_folder(folder, deployment)


def only(loaded: DefsFolder) -> BrokenFile:
    """Return the only broken file, after a check that the good datasets are complete."""
    assert tuple(sorted(loaded.configs)) == GOOD
    repository = loaded.definitions.get_repository_def()
    assert {sensor.name for sensor in repository.sensor_defs} == {
        f"{name}_{sensor}" for name in GOOD for sensor in ("landing", "rebuild", "failure")
    }
    assert {schedule.name for schedule in repository.schedule_defs} == {f"{name}_retrain" for name in GOOD}
    (broken,) = loaded.broken
    keys = {key.to_user_string() for key in loaded.definitions.resolve_asset_graph().get_all_asset_keys()}
    assert len(keys) == 6 * len(GOOD) + 1
    assert f"{broken.group}/load_error" in keys
    return broken


FIGS = dataset_yaml("figs")
SECTIONS = "type: " + TYPE + "\nattributes:\n  dataset: figs\n  identity: [id]\n"
MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "unknown key": (SECTIONS + "  exlude: [a]\n", ":5: attributes.exlude: unknown key; did you mean 'exclude'?"),
    "unknown key of a section": (
        SECTIONS + "  gate:\n    dayz: 3\n",
        ":6: attributes.gate.dayz: unknown key; did you mean 'days'?",
    ),
    "unknown key, like no other": (
        SECTIONS + "  retrain: {zzz: 3}\n",
        ":5: attributes.retrain.zzz: unknown key; remove it, or choose one of cron, min_new_rows",
    ),
    "key beside attributes": (FIGS + "attribute: 1\n", ": attribute: unknown key; did you mean 'attributes'?"),
    "wrong type": (
        SECTIONS + "  max_quarantine_share: lots\n",
        ":5: attributes.max_quarantine_share: Input should be a valid number, unable to parse string as a number, "
        "not 'lots'; correct the value",
    ),
    "several mistakes": (
        SECTIONS + "  exlude: [a]\n  fresh_hours: 0\n",
        "not '0'; correct the value; ",
    ),
    "missing key": (
        "type: " + TYPE + "\nattributes: {identity: [id]}\n",
        ":2: attributes.dataset: the key is required",
    ),
    "no attributes": ("type: " + TYPE + "\n", ": attributes: the section is empty; give at least dataset"),
    "contradiction": (
        dataset_yaml("figs", end="2023-01-01"),
        "end=2023-01-01 is before start=2024-01-01; give the last day",
    ),
    "bad name": (dataset_yaml("Figs!"), "dataset='Figs!' is not a valid name"),
    "unknown architecture": (
        dataset_yaml("figs", model={"architecture": "convv"}),
        "defs.yaml: architecture='convv' is not one of dense, conv; choose one of them",
    ),
    "bad cron": (dataset_yaml("figs", retrain={"cron": "every day"}), "Found invalid cron schedule 'every day'"),
    "bad owner": (dataset_yaml("figs", owners=["me"]), "Invalid owner 'me'"),
    "open bracket": (
        FIGS.replace("attributes:", "attributes: ["),
        " (while parsing a flow sequence, which starts on line 2); correct this line or those above it",
    ),
    "tab": (SECTIONS + "\tlabel: x\n", ":5: not valid YAML: found character '\\t' that cannot start any token"),
    "recursive anchor": (
        "type: " + TYPE + "\nattributes: &a {dataset: figs, derive: *a}\n",
        ":2: not valid YAML: found unconstructable recursive node",
    ),
    "null byte": (FIGS + "\0", "defs.yaml: not valid YAML: unacceptable character #x0000"),
    "empty": ("", "defs.yaml: the file is empty; write type and attributes of a dataset into it"),
    "only a comment": ("# to do\n", "defs.yaml: the file is empty"),
    "text": ("hello\n", "defs.yaml:1: Input should be an object, not 'hello'"),
    "list": ("- a\n", "defs.yaml:1: Input should be an object; correct the value"),
    "no type": ("attributes: {dataset: figs}\n", "defs.yaml:1: type: the key is required; add it"),
    "unknown type": (
        FIGS.replace("AutoencoderPipeline", "AutoencoderPipelin"),
        "has no attribute `AutoencoderPipelin`; write type: " + TYPE,
    ),
    "unknown module": (FIGS.replace(TYPE, "no.module.Pipeline"), "Module `no.module` not found; write type: "),
    "type without module": (FIGS.replace(TYPE, "Pipeline"), "Invalid component type name: `Pipeline`"),
    "type of something else": (FIGS.replace(TYPE, "pathlib.Path"), "must be a subclass of dagster.Component"),
    "UTF-16": (FIGS.encode("utf-16"), "defs.yaml: not UTF-8 text: "),
    "Latin-1": ((FIGS + "# Z\u00fcrich").encode("latin-1"), "save the file with the encoding UTF-8"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_takes_only_its_dataset_out(load: Load, name: str) -> None:
    content, message = MISTAKES[name]
    broken = only(load({"figs/defs.yaml": content}))
    assert broken.message.startswith(f"{Path(broken.message.split(':')[0]).parts[0]}/defs/figs/defs.yaml:")
    assert message in broken.message
    assert "\n" not in broken.message
    assert "errors.pydantic.dev" not in broken.message
    assert broken.group == "figs"
    assert is_expected(broken.error)


def test_a_folder_without_mistakes_has_no_broken_file(load: Load) -> None:
    loaded = load({"figs/defs.yaml": FIGS})
    assert (sorted(loaded.configs), loaded.broken) == (["apples", "figs", "pears"], ())
    assert len(loaded.definitions.resolve_asset_graph().get_all_asset_keys()) == 18


def test_a_yaml_that_is_a_folder_or_a_link_to_nothing_is_broken(load: Load, project: Path) -> None:
    (project / "figs" / "defs.yaml").mkdir(parents=True)
    broken = only(load({}))
    assert broken.message.endswith(
        "defs/figs/defs.yaml: cannot be read: Is a directory; put a readable file there, or delete it"
    )
    (project / "figs" / "defs.yaml").rmdir()
    (project / "figs" / "defs.yaml").symlink_to("nowhere.yaml")
    broken = only(load_again(project))
    assert "defs.yaml: cannot be read: it is a link to nowhere.yaml, which does not exist" in broken.message


def test_of_two_files_with_one_dataset_neither_is_loaded(load: Load) -> None:
    broken = only(load({"figs/defs.yaml": FIGS, "figs_copy/defs.yaml": FIGS}))
    assert (broken.group, broken.datasets) == ("figs", ("figs",))
    assert "dataset='figs' is defined in " in broken.message
    assert "/defs/figs/defs.yaml and " in broken.message
    assert "/defs/figs_copy/defs.yaml; neither is loaded" in broken.message


def test_one_file_with_one_dataset_twice_is_broken(load: Load) -> None:
    broken = only(load({"figs/defs.yaml": f"{FIGS}---\n{FIGS}"}))
    assert "/defs/figs/defs.yaml, 2 times; neither is loaded" in broken.message


def test_a_broken_copy_of_a_dataset_leaves_the_original_alone(load: Load) -> None:
    broken = only(load({"copy/defs.yaml": dataset_yaml("apples", exlude=["a"])}))
    assert (broken.group, broken.datasets) == ("copy", ("apples",))


def test_files_in_deeper_folders_and_python_files_load_beside_a_mistake(load: Load) -> None:
    python = "import dagster as dg\n\n@dg.asset\ndef extra() -> None: ...\n"
    loaded = load(
        {
            "team/figs/defs.yaml": "",
            "team/plums/defs.yaml": dataset_yaml("plums"),
            "team/more.py": python,
            "bad.py": "import no_such_module\n",
        }
    )
    assert sorted(loaded.configs) == ["apples", "pears", "plums"]
    assert [broken.group for broken in loaded.broken] == ["bad", "team_figs"]
    assert "bad.py: ModuleNotFoundError: No module named 'no_such_module'" in loaded.broken[0].message
    assert dg.AssetKey("extra") in loaded.definitions.resolve_asset_graph().get_all_asset_keys()


def test_settings_of_a_folder_apply_while_its_files_can_be_loaded(load: Load) -> None:
    folder = (
        "type: dagster.DefsFolderComponent\npost_processing: {assets: [{target: '*', attributes: {tags: {a: b}}}]}\n"
    )
    files: dict[str, str | bytes] = {"team/defs.yaml": folder, "team/plums/defs.yaml": dataset_yaml("plums")}
    loaded = load({**files, "figs/defs.yaml": ""})
    assert [broken.group for broken in loaded.broken] == ["figs"]
    node = loaded.definitions.resolve_asset_graph().get(dg.AssetKey(["plums", "raw_data"]))
    assert node.tags["a"] == "b"
    loaded = load({**files, "team/figs/defs.yaml": FIGS, "other/defs.yaml": FIGS, "figs/defs.yaml": FIGS})
    assert sorted(loaded.configs) == ["apples", "pears", "plums"]


def test_a_file_with_the_deprecated_type_loads_beside_a_mistake(load: Load) -> None:
    old = dataset_yaml("plums").replace("ae_pipeline.orchestration.component", "ae_pipeline.component")
    loaded = load({"plums/defs.yaml": old, "figs/defs.yaml": ""})
    assert sorted(loaded.configs) == ["apples", "pears", "plums"]


def test_the_placeholder_shows_the_error_and_fails_with_it(load: Load) -> None:
    loaded = load({"figs/defs.yaml": MISTAKES["unknown key"][0]})
    message = only(loaded).message
    key = dg.AssetKey(["figs", "load_error"])
    node = loaded.definitions.resolve_asset_graph().get(key)
    assert (node.group_name, node.kinds) == ("figs", {"error"})
    assert f"```text\n{message}\n```" in (node.description or "")
    assert node.metadata["error"] == message
    job = loaded.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={key})
    result = job.execute_in_process(raise_on_error=False)
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data
    assert failure.user_failure_data.description == message


def test_a_key_that_is_there_twice_is_deprecated(load: Load) -> None:
    with pytest.warns(
        DeprecationWarning, match=r"/defs/figs/defs.yaml:5: 'identity' is there twice, and only the last"
    ):
        loaded = load({"figs/defs.yaml": SECTIONS + "  identity: [other]\n"})
    assert loaded.configs["figs"].identity == ("other",)


def test_a_defect_of_the_code_is_told_apart(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any) -> None:
        if config.dataset == "figs":
            raise AttributeError("a defect")

    monkeypatch.setattr("ae_pipeline.orchestration.component.check_architecture", fail)
    broken = only(load({"figs/defs.yaml": FIGS}))
    assert broken.message.endswith("defs/figs/defs.yaml: AttributeError: a defect; correct the file")
    assert not is_expected(broken.error)
    assert broken.as_exception("figs") is broken.error


def test_python_files_that_contradict_each_other_raise(load: Load) -> None:
    python = "import dagster as dg\n\n@dg.asset\ndef extra() -> None: ...\n"
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="extra"):
        load({"one.py": python, "two.py": python})
