"""Load the defs folder. A file that cannot be loaded takes only its own datasets out."""

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import yaml
from dagster.components.core.decl import ComponentDecl, ComponentRootDecl, build_filesystem_component_decl_from_context
from dagster.components.core.defs_module import (
    ComponentPath,
    ComponentRootComponent,
    ComponentRootLoc,
    CompositeYamlComponent,
    DefsFolderComponent,
)

from ae_pipeline.common.deprecation import REMOVED_IN, warn
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.assets.load_error import build_load_error
from ae_pipeline.orchestration.component import AutoencoderPipeline
from ae_pipeline.orchestration.loading import without_dagster_warnings, without_garbage_collection
from ae_pipeline.orchestration.yaml_errors import describe_error, is_expected, repeated_keys
from ae_pipeline.storage.project import DEFS_VARIABLE, ProjectFolder

_YAML_NAMES = ("defs.yaml", "defs.yml", "component.yaml")
"""Names of the file that defines a component, in Dagster's order."""

_FOLDER_TYPE = "DefsFolderComponent"
"""End of the type of a file that configures a folder of components, and is no component itself."""


_CONTAINERS = (ComponentRootComponent, DefsFolderComponent, CompositeYamlComponent)
"""Components that only hold others."""


@dataclass(frozen=True, kw_only=True)
class BrokenFile:
    """A file of the defs folder that cannot be loaded, or several files that contradict one another.

    Attributes:
        group: Asset group that shows the error.
        datasets: Datasets of the file, as far as they can be read.
        message: File, line, key, rule and remedy, in one line.
        error: Error that loading raised.
    """

    group: str
    datasets: tuple[str, ...]
    message: str
    error: Exception

    def as_exception(self, dataset: str) -> Exception:
        """Return the exception for a person who asked for a dataset of the file: a short one, unless code is wrong."""
        return ConfigError(f"{dataset!r} is not loaded: {self.message}") if is_expected(self.error) else self.error


@dataclass(frozen=True)
class DefsFolder:
    """The content of a defs folder.

    Attributes:
        definitions: Everything that Dagster loads: the datasets, and an asset `load_error` for each broken file.
        configs: Configuration of each dataset that was loaded, by name.
        broken: Files that cannot be loaded.
    """

    definitions: dg.Definitions
    configs: Mapping[str, PipelineConfig]
    broken: tuple[BrokenFile, ...] = ()


def load_defs_folder(project: ProjectFolder, deployment: dg.Definitions) -> DefsFolder:
    """Load all files of the defs folder that can be loaded.

    Two files with the same dataset are both broken: their runs would write to the same folders.

    Args:
        project: Project with the defs folder.
        deployment: Resources, executor and loggers of the deployment.

    Raises:
        ConfigError: The defs folder does not exist, or cannot be imported.
        Exception: Files that can be loaded alone cannot be loaded together.
    """
    loaded = _load(project, deployment)
    if tree := loaded.definitions.component_tree:
        _warn_of_repeated_keys(tree)
    return loaded


def _load(project: ProjectFolder, deployment: dg.Definitions) -> DefsFolder:
    # Not `dg.load_from_defs_folder`: it looks for the project's configuration above this package, and an installed
    # package has none.
    arguments: dict[str, Any] = {"defs_module": _import_defs(project), "project_root": project.root}
    entries = (path for path in project.defs.rglob("*") if "__pycache__" not in path.parts)
    if not any(path.is_file() or path.is_symlink() for path in entries):
        return DefsFolder(deployment, {})  # Dagster refuses an empty folder
    whole_error: Exception | None = None
    try:
        with without_garbage_collection():
            with without_dagster_warnings():
                tree = dg.ComponentTree(**arguments)
                definitions = dg.Definitions.merge(tree.build_defs(), deployment)
            _validate(definitions, tree)
        if not _clashes(tree) and not _dangling(tree.defs_module_path):
            return DefsFolder(definitions, _configs(tree))
    except Exception as error:  # noqa: BLE001
        whole_error = error
    with without_dagster_warnings():
        return _load_partly(lambda: _PartialTree(**arguments), deployment, whole_error)


def _import_defs(project: ProjectFolder) -> ModuleType:
    """Import the defs folder, so that YAML files can name its functions.

    Raises:
        ConfigError: The folder does not exist, or Python cannot import it under its name.
    """
    if not project.defs.is_dir():
        raise ConfigError(f"the project {project.root} has no folder {project.defs}; create it")
    if not all(part.isidentifier() for part in project.module.split(".")):
        raise ConfigError(
            f"{project.defs}: Python cannot import a folder of this name, because it is no identifier; rename it, for "
            "example to defs"
        )
    if str(project.root) not in sys.path:
        sys.path.append(str(project.root))
    importlib.invalidate_caches()
    module = importlib.import_module(project.module)
    folders = [Path(path).resolve() for path in getattr(module, "__path__", [])]
    if project.defs.resolve() not in folders[:1]:
        raise ConfigError(
            f"{project.defs} cannot be imported, because the name {project.module!r} belongs to "
            f"{folders[0] if folders else module}; rename the folder, and set {DEFS_VARIABLE} to it"
        )
    return module


def _load_partly(
    new_tree: "Callable[[], _PartialTree]", deployment: dg.Definitions, whole_error: Exception | None
) -> DefsFolder:
    """Load the files one by one. If all of them load, raise the error that loading them together raised."""
    partial = new_tree()
    errors = {folder: _missing(link) for folder, link in _dangling(partial.defs_module_path).items()}
    partial.add_all(errors, deployment)
    if clashes := _clashes(partial):
        partial = new_tree()
        partial.add_all({**errors, **clashes}, deployment)
    if not partial.errors and whole_error:
        raise whole_error
    configs = _configs(partial)
    broken = _broken_files(partial, configs)
    shown = dg.Definitions(assets=[build_load_error(each.group, each.message) for each in broken])
    return DefsFolder(dg.Definitions.merge(partial.build_defs(), deployment, shown), configs, broken)


class _ClashError(ConfigError):
    """A dataset is defined more than once. The message names the files."""


class _PartialTree(dg.ComponentTree):
    """The defs folder without the files that cannot be loaded.

    Dagster parses all files at once, so that one error hides every file. This tree parses them one by one.
    """

    @cached_property
    def decls(self) -> "list[ComponentDecl[dg.Component]]":
        """Declarations of the files that can be loaded."""
        return []

    @cached_property
    def errors(self) -> dict[Path, Exception]:
        """Error of each folder or Python file that cannot be loaded."""
        return {}

    def find_root_decl(self) -> ComponentRootDecl:
        """Return the root of the tree, above the files that can be loaded."""
        return ComponentRootDecl(context=self.decl_load_context, loc=ComponentRootLoc(), decls=list(self.decls))

    def add_all(self, known: Mapping[Path, Exception], deployment: dg.Definitions) -> None:
        """Add all files of the defs folder, except for those with a known error."""
        self._add(self.defs_module_path, known, deployment)

    def _add(self, path: Path, known: Mapping[Path, Exception], deployment: dg.Definitions) -> None:
        error = known.get(path)
        has_known = any(path in folder.parents for folder in known)
        try:
            if path.is_dir() and (_yaml_in(path) is None or (_configures_folder(path) and has_known)):
                for child in sorted(path.iterdir()):
                    if child.name != "__pycache__" and not child.name.startswith("."):
                        self._add(child, known, deployment)
                return
            if error is None:
                self._add_file(path, deployment)
        except Exception as raised:  # noqa: BLE001
            error = raised
        if error is not None:
            self.errors[path] = error

    def _add_file(self, path: Path, deployment: dg.Definitions) -> None:
        context = self.decl_load_context.for_component_loc(ComponentPath.from_path(path))
        decl = build_filesystem_component_decl_from_context(context)
        if decl is None:
            return
        self.decls.append(decl)
        try:
            own_clashes = _clashes(self, decl)
            if path in own_clashes:
                raise own_clashes[path]
            dg.Definitions.validate_loadable(dg.Definitions.merge(self.build_defs(decl.loc), deployment))
        except Exception:
            self.decls.pop()
            raise


def _validate(definitions: dg.Definitions, tree: dg.ComponentTree) -> None:
    """Check that everything loads together.

    Dagster resolves each job to check it, against all assets. That takes most of the time with many datasets, and the
    jobs of a dataset are the same whatever its YAML says. So they are checked only if other code defines jobs as well.
    """
    kinds = {decl.component_type for _, decl in tree.find_root_decl().iterate_loc_component_decl_pairs()}
    if kinds <= {AutoencoderPipeline, *_CONTAINERS}:
        definitions.get_repository_def()
    else:
        dg.Definitions.validate_loadable(definitions)


def _configs(tree: dg.ComponentTree) -> dict[str, PipelineConfig]:
    return {each.config.dataset: each.config for each in tree.get_all_components(AutoencoderPipeline)}


def _clashes(tree: dg.ComponentTree, below: "ComponentDecl[dg.Component] | None" = None) -> dict[Path, "_ClashError"]:
    """Return the error of each folder with a dataset that is defined twice, in the tree or below a declaration."""
    by_dataset: dict[str, list[Path]] = {}
    for loc, decl in (below or tree.find_root_decl()).iterate_loc_component_decl_pairs():
        if isinstance(loc, ComponentPath) and issubclass(decl.component_type, AutoencoderPipeline):
            component = tree.load_component(loc, AutoencoderPipeline)
            by_dataset.setdefault(component.config.dataset, []).append(loc.file_path)
    errors: dict[Path, _ClashError] = {}
    for dataset, folders in by_dataset.items():
        if len(folders) > 1:
            names = " and ".join(str(_shown(folder, tree.project_root)) for folder in dict.fromkeys(folders))
            where = names if len(set(folders)) > 1 else f"{names}, {len(folders)} times"
            error = _ClashError(
                f"dataset={dataset!r} is defined in {where}; neither is loaded, because their runs would write to the "
                "same folders; give one of them another name, or delete it"
            )
            errors |= dict.fromkeys(folders, error)
    return errors


def _broken_files(tree: _PartialTree, configs: Mapping[str, PipelineConfig]) -> tuple[BrokenFile, ...]:
    by_error: dict[Exception, list[Path]] = {}
    for path, error in tree.errors.items():
        by_error.setdefault(error, []).append(path)
    broken: list[BrokenFile] = []
    for error, paths in by_error.items():
        datasets = tuple(dict.fromkeys(name for path in paths for name in _datasets_in(path)))
        relative = paths[0].relative_to(tree.defs_module_path).with_suffix("").as_posix()
        taken = {*configs, *(each.group for each in broken)}
        named = [*datasets, re.sub(r"\W", "_", relative)]
        group = next((name for name in named if name not in taken), f"{named[-1]}_{len(broken)}")
        shown = _shown(paths[0], tree.project_root)
        message = str(error) if isinstance(error, _ClashError) else describe_error(error, shown)
        broken.append(BrokenFile(group=group, datasets=datasets, message=message, error=error))
    return tuple(broken)


def _warn_of_repeated_keys(tree: dg.ComponentTree) -> None:
    for file in sorted(path for path in tree.defs_module_path.rglob("*") if path.name in _YAML_NAMES):
        with contextlib.suppress(OSError, UnicodeError, yaml.YAMLError):  # of a file that is reported as broken
            for line, key in repeated_keys(file.read_text(encoding="utf-8")):
                warn(
                    f"{_shown(file.parent, tree.project_root)}:{line}: {key!r} is there twice, and only the last one "
                    f"counts; it will be an error in version {REMOVED_IN}; remove one"
                )


def _yaml_in(folder: Path) -> Path | None:
    """Return the file that defines the component of a folder, even if it is a link to nothing."""
    files = (folder / name for name in _YAML_NAMES)
    return next((file for file in files if file.exists() or file.is_symlink()), None)


def _shown(path: Path, project_root: Path) -> Path:
    """Return the YAML of a folder, or the Python file, relative to the project."""
    file = _yaml_in(path) or path
    return file.relative_to(project_root) if file.is_relative_to(project_root) else file


def _dangling(folder: Path) -> dict[Path, Path]:
    """Return the folders whose YAML is a link to nothing. Dagster takes them for empty folders."""
    links = (path for path in folder.rglob("*") if path.name in _YAML_NAMES and not path.exists())
    return {link.parent: link for link in links if _yaml_in(link.parent) == link}


def _missing(link: Path) -> FileNotFoundError:
    return FileNotFoundError(2, f"it is a link to {link.readlink()}, which does not exist")


def _configures_folder(folder: Path) -> bool:
    return any(str(kind).endswith(_FOLDER_TYPE) for kind in _values(folder, "type"))


def _datasets_in(path: Path) -> list[str]:
    """Return the datasets that a file defines, as far as it can be read."""
    return [name for name in _values(path, "dataset") if re.fullmatch(r"[a-z][a-z0-9_]*", name)]


def _values(folder: Path, key: str) -> Iterator[str]:
    """Yield the values of a key in the YAML of a folder, even if the file is not valid."""
    file = _yaml_in(folder)
    if file is None or not file.is_file():
        return
    text = file.read_bytes().decode("utf-8", errors="replace")
    try:
        documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except yaml.YAMLError:
        yield from re.findall(rf"^\s*{key}:\s*['\"]?([\w.]+)", text, re.MULTILINE)
        return
    for document in documents:
        attributes = document.get("attributes")
        for section in (document, attributes if isinstance(attributes, dict) else {}):
            if isinstance(value := section.get(key), str):
                yield value
