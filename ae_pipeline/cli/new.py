"""`ae-pipeline new`: look at files, and propose the YAML of a dataset for them."""

import datetime as dt
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import yaml
from pydantic import ValidationError

from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.features.sizes import MIN_ROWS
from ae_pipeline.ingestion.image_formats import IMAGE_SUFFIXES
from ae_pipeline.ingestion.proposal.columns import Choice
from ae_pipeline.ingestion.proposal.images import describe_unread, images_in, propose_images
from ae_pipeline.ingestion.proposal.propose import Proposal, propose
from ae_pipeline.ingestion.readers.files import TABLE_SUFFIXES, can_read, read_file
from ae_pipeline.ingestion.rows import ORIGIN_COLUMNS, UnreadableFileError
from ae_pipeline.ingestion.skipped_folders import is_skipped
from ae_pipeline.storage.environment import project_folders
from ae_pipeline.storage.files import atomic_write, make_folder, write_text
from ae_pipeline.storage.location import dataset_paths
from ae_pipeline.storage.project import own_project
from ae_pipeline.storage.session import hold_dataset

_READ_BYTES, _READ_FILES = 128 << 20, 200
"""Bytes and files that a proposal rests on; of more files, it takes some over the whole range."""

_ANNOTATIONS = {".txt", ".json"}
"""Suffixes of tables that can also describe one image each."""


def new(name: str, files: Sequence[Path], *, yes: bool) -> int:
    """Print the YAML that fits the files and what would be done; do it if a person agrees. Return the exit status.

    Args:
        name: Name of the dataset.
        files: Files with rows, or one folder that holds them and where they stay.
        yes: Do it without a question.

    Raises:
        ConfigError: The name is invalid, the dataset exists already, or there is no project here.
        StorageError: A file does not exist, cannot be read, or two files have the same name.
    """
    target = own_project().defs / name / "defs.yaml"
    data = project_folders()["AE_PIPELINE_DATA"].resolve()
    plan = plan_dataset(name, files, target, data / "landing" / name)
    print(plan.text)
    print(plan.describe())
    if not yes and not sys.stdin.isatty():
        print(f"\nNothing was written. Run the command again with --yes to do it, or write {target} yourself.")
        return 0
    if not yes and input("\nDo it? [y/N] ").strip().lower() not in {"y", "yes"}:
        print("Nothing was written.")
        return 0
    paths = dataset_paths(name)
    with hold_dataset(paths) if paths.store else nullcontext():  # which copies the files to the store
        plan.execute()
    print(f"\nDone. Next: look at {target}, then run `ae-pipeline run {name}`.")
    return 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `ae-pipeline new` would do.

    Attributes:
        text: Content of the YAML.
        target: Where it is written.
        copies: Target of each file to copy; empty if the files stay where they are.
        remarks: What a person should know before.
    """

    text: str
    target: Path
    copies: dict[Path, Path]
    remarks: tuple[str, ...]

    def describe(self) -> str:
        """Return the plan as text."""
        lines = [f"would write  {self.target}"]
        if self.copies:
            folder = next(iter(self.copies.values())).parent
            lines.append(f"would copy   {pluralize(len(self.copies), 'file')} to {folder}")
        return "\n".join([*lines, *(f"note         {remark}" for remark in self.remarks)])

    def execute(self) -> None:
        """Copy the files, then write the YAML, so that an interrupted command leaves no dataset without files."""
        for source, copy in self.copies.items():
            with atomic_write(copy) as temporary:
                shutil.copyfile(source, temporary)
        make_folder(self.target.parent)
        write_text(self.target, self.text)


def plan_dataset(name: str, files: Sequence[Path], target: Path, landing: Path) -> Plan:
    """Return what `ae-pipeline new` would do.

    Args:
        name: Name of the dataset.
        files: Files with rows, or one folder.
        target: Path of the YAML.
        landing: Default landing folder of the dataset.
    """
    _check_name(name, target)
    folder = files[0].resolve() if len(files) == 1 and files[0].is_dir() else None
    if folder and (images := images_in(folder, IMAGE_SUFFIXES)) and not _has_tables(folder, images):
        source = folder if folder != landing.resolve() else None
        text = propose_images(name, folder, images, source, MIN_ROWS)
        _check(text)
        return Plan(text=text, target=target, copies={}, remarks=tuple(filter(None, [describe_unread(folder)])))
    paths = _files_in(folder) if folder else [_existing(file) for file in files]
    copies = {} if folder else _copies(paths, landing)
    rows, remarks = _read(paths, folder)
    if copies and landing.is_dir() and any(landing.iterdir()):
        remarks.append(f"{landing} holds other files, which belong to the dataset too")
    source = folder if folder and folder != landing.resolve() else None
    proposal = propose(rows, dt.datetime.now(dt.UTC).date())
    text = render(name, proposal, [path.name for path in paths], source)
    _check(text)
    return Plan(text=text, target=target, copies=copies, remarks=tuple(remarks))


def _check_name(name: str, target: Path) -> None:
    try:
        PipelineConfig(dataset=name, identity=("id",))
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    if target.exists():
        raise ConfigError(f"the dataset {name!r} exists: {target}; edit it, or choose another name")


def _existing(file: Path) -> Path:
    if not file.is_file():
        problem = (
            "is a folder; give one folder alone, or files" if file.is_dir() else "does not exist; correct the path"
        )
        raise StorageError(f"{file} {problem}")
    if file.suffix.lower() in IMAGE_SUFFIXES:
        raise StorageError(f"{file} is an image, and a proposal needs the folder of all images; give {file.parent}")
    if not _is_table(file):
        raise StorageError(
            f"{file} is no {' or '.join(TABLE_SUFFIXES)} file; give files with rows, or write the YAML by hand"
        )
    return file.resolve()


def _is_table(file: Path) -> bool:
    return can_read(file.name, None)


def _has_tables(folder: Path, images: Sequence[Path]) -> bool:
    """Return whether a folder is one of tables: it holds more tables than images, or too few images to train on.

    Annotations with the name of an image describe it, and a text or metadata beside a few images are no tables.
    """
    stems = {path.stem for path in images}
    tables = _tables_in(folder)
    is_text = [path.suffix.lower() in _ANNOTATIONS for path in tables]
    if len(images) < MIN_ROWS and any(
        not text and path.name != ImagesConfig().metadata for path, text in zip(tables, is_text, strict=True)
    ):
        return True
    return sum(not text or path.stem not in stems for path, text in zip(tables, is_text, strict=True)) > len(images)


def _tables_in(folder: Path) -> list[Path]:
    paths = (path for path in sorted(folder.rglob("*")) if _is_table(path) and path.is_file())
    return [path for path in paths if not path.name.startswith("_") and not is_skipped(path, folder)]


def _files_in(folder: Path) -> list[Path]:
    if paths := _tables_in(folder):
        return paths
    if unread := describe_unread(folder):
        raise StorageError(f"{folder} holds no image that can be read: {unread}")
    raise StorageError(
        f"{folder} holds no {' or '.join(TABLE_SUFFIXES)} file, and no PNG, JPEG, WebP, BMP or TIFF image; "
        "give another folder, or files"
    )


def _copies(files: Sequence[Path], landing: Path) -> dict[Path, Path]:
    copies = {file: landing / file.name for file in files if file.parent != landing.resolve()}
    names = [copy.name for copy in copies.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StorageError(f"two files have the name {twice[0]!r}; rename one, or give the folder that holds them")
    if taken := [copy for file, copy in copies.items() if copy.exists() and copy.read_bytes() != file.read_bytes()]:
        raise StorageError(f"{taken[0]} exists and has another content; move it away, or rename the new file")
    return copies


def _read(files: Sequence[Path], folder: Path | None) -> tuple[pl.DataFrame, list[str]]:
    """Return the rows of files, and what a person should know about files that cannot be read."""
    step = max(1, math.ceil(len(files) / _READ_FILES))
    frames: list[pl.DataFrame] = []
    remarks: list[str] = []
    size = 0
    for path in files[::step]:
        name = path.relative_to(folder).as_posix() if folder else path.name
        try:
            file = read_file(name, path.read_bytes())
        except UnreadableFileError as error:
            remarks.append(f"{name} would be refused: {error}")
            continue
        if file.rejected.height:
            first = file.rejected["reason"][0]
            remarks.append(
                f"{pluralize(file.rejected.height, 'row')} of {name} would go to quarantine, the first: {first}"
            )
        if file.rows.height:
            frames.append(file.rows.drop(ORIGIN_COLUMNS))
        size += path.stat().st_size
        if size > _READ_BYTES:
            break
    if not frames:
        reasons = f"; {remarks[0]}" if remarks else ""
        raise StorageError(f"none of {pluralize(len(files), 'file')} has a readable row{reasons}; give other files")
    if len(frames) < len(files) - len(remarks):
        remarks.append(f"the proposal rests on {len(frames):,} of {len(files):,} files")
    return pl.concat(frames, how="diagonal_relaxed"), remarks


def render(name: str, proposal: Proposal, files: Sequence[str], source: Path | None) -> str:
    """Return the YAML of a proposal, with the reason of each choice as a comment.

    Args:
        name: Name of the dataset.
        proposal: Proposed settings.
        files: Names of the files that it rests on.
        source: Folder where the files stay, or None for the default landing folder.
    """
    lines = [
        "type: ae_pipeline.orchestration.component.AutoencoderPipeline",
        "",
        f"# Proposed from {pluralize(proposal.rows, 'row')} of {abbreviate(files)}. A comment gives the reason of",
        "# its line: correct what is wrong before the first run.",
        "attributes:",
        f"  dataset: {name}",
        '  description: "" # say what a row is, and where it comes from',
        *([f"  source: {{path: {_scalar(str(source))}}}"] if source else []),
        "",
        _line("identity", proposal.identity),
        *(f"  # {note}" for note in proposal.notes),
        *(_line(key, choice) for key, choice in proposal.days.items()),
        *_mapping("columns", proposal.columns),
        *_list("exclude", proposal.exclude),
        *([_line("label", proposal.label)] if proposal.label else []),
        "",
        "  # Sizes of the model, the training and the gate have defaults that fit the rows. See docs/reference.",
    ]
    return "\n".join(lines) + "\n"


def _line(key: str, choice: Choice, indent: str = "  ") -> str:
    mark = "" if choice.is_live else "# "
    reason = " ".join(choice.reason.split())
    return f"{indent}{mark}{key}: {_scalar(choice.value)} # {reason}"


def _mapping(key: str, choices: Mapping[str, Choice]) -> list[str]:
    """Return a key with one line for each choice; a comment if no choice is set."""
    if not choices:
        return []
    mark = "" if any(choice.is_live for choice in choices.values()) else "# "
    indent = f"  {mark}  " if mark else "    "
    live = {name: Choice(choice.value, choice.reason) if mark else choice for name, choice in choices.items()}
    return [f"  {mark}{key}:", *(_line(_scalar(name), choice, indent) for name, choice in live.items())]


def _list(key: str, choices: Mapping[str, Choice]) -> list[str]:
    items = [f"    - {_scalar(name)} # {' '.join(choice.reason.split())}" for name, choice in choices.items()]
    return [f"  {key}:", *items] if items else []


def _scalar(value: object) -> str:
    """Return a value in one line of YAML."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.strip()[1:-1]


def _check(text: str) -> None:
    """Check that the YAML loads; what does not is a defect of the proposal."""
    PipelineConfig.model_validate(yaml.safe_load(text)["attributes"])
