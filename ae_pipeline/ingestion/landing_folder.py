"""The landing folder of a dataset: which files are read, and why the others are not."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ae_pipeline.common.deprecation import warn_deprecated
from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import abbreviate, pluralize, printable_path
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import ImagesConfig, SourceConfig
from ae_pipeline.ingestion.image_formats import IMAGE_FORMATS, is_read_format
from ae_pipeline.ingestion.links import LinkChecker, is_link, surplus_files
from ae_pipeline.ingestion.masks import is_mask, mask_path
from ae_pipeline.ingestion.readers.files import TEXT_SUFFIXES, can_read, format_of
from ae_pipeline.ingestion.readers.image_metadata import is_metadata
from ae_pipeline.ingestion.readers.json_lines import starts_with_array
from ae_pipeline.ingestion.readers.pictures import FILE_COLUMN, is_image
from ae_pipeline.ingestion.skipped_folders import reason_to_skip
from ae_pipeline.storage.dataset import Dataset

logger = logging.getLogger(__name__)

_NAMED_REASONS = 8
"""Number of reasons that a log line has."""

_LOOKS = 200
"""Number of files with another suffix that are looked into, because each look into a network storage takes time."""

_LONGEST_SUFFIX = 5
"""Number of letters up to which a suffix may be that of a format."""

_HIDDEN = ("the folder '", "its name starts with '.'")
"""How reasons start that concern no file of people."""

_METADATA_SUFFIXES = (".csv", ".tsv")
"""Suffixes of tables that people write about images."""


def landing_folder(dataset: Dataset) -> Path:
    """Return the folder in which the dataset's files land.

    A relative `source.path` is below the project's folder. Until version 0.3 it may be below the data folder instead.
    """
    path, paths = dataset.config.source.path, dataset.paths
    if path is None:
        return paths.landing
    folder, former = paths.project / path, paths.root / path
    if not folder.exists() and former.exists():
        warn_deprecated(path, os.path.relpath(former, paths.project), "source.path, relative to the data folder,")
        return former
    return folder


def landing_address(dataset: Dataset) -> str:
    """Return where people put the dataset's files: the landing folder, or its address in an object store."""
    folder, paths = landing_folder(dataset), dataset.paths
    return f"{paths.store}/landing/{paths.dataset}" if paths.store and folder == paths.landing else str(folder)


@dataclass(frozen=True)
class LandingFolder:
    """What lies in the landing folder of a dataset.

    Attributes:
        files: Files to read, by their printable path below the folder.
        others: Reason for each file that is not read.
        masks: Files that are masks of images, by their printable path below the folder.
    """

    files: dict[str, Path]
    others: dict[str, str]
    masks: dict[str, Path] = field(default_factory=dict)

    def describe_others(self) -> str:
        """Return how many files are not read for each reason, with the name of one; hidden files come last."""
        reasons = sorted(
            Counter(self.others.values()).items(), key=lambda item: (item[0].startswith(_HIDDEN), -item[1])
        )
        first = {reason: name for name, reason in reversed(self.others.items())}
        named = "; ".join(
            f"{first[reason]}{f' and {count - 1:,} more' if count > 1 else ''}: {reason}"
            for reason, count in reasons[:_NAMED_REASONS]
        )
        rest = sum(count for _, count in reasons[_NAMED_REASONS:])
        more = f"; and {rest:,} for other reasons" if rest else ""
        return f"{pluralize(len(self.others), 'file')} not read ({named}{more})"

    def log_masks(self, images: ImagesConfig) -> None:
        """Log how many masks belong to no image.

        Args:
            images: Settings for images.
        """
        used = {mask_path(name, images) for name in self.files}
        if unused := [name for name in self.masks if name not in used]:
            logger.warning(
                f"{len(unused):,} of {pluralize(len(self.masks), 'mask')} belong to no image that landed "
                f"({abbreviate(unused)}); rename them, or correct images.masks={images.masks!r}"
            )


def list_landing(dataset: Dataset) -> LandingFolder:
    """Return the files in the landing folder: those to read, and the others with the reason.

    Raises:
        StorageError: The folder does not exist.
    """
    config, folder = dataset.config, landing_folder(dataset)
    if folder.exists() and not folder.is_dir():
        raise StorageError(
            f"expected the landing folder of {config.dataset!r} at {folder}, found a file; move or delete it"
        )
    if not folder.exists():
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {landing_address(dataset)} does not exist; put "
            f"{_kinds(config)} files there"
        )
    files: dict[str, Path] = {}
    others: dict[str, str] = {}
    masks: dict[str, Path] = {}
    links, misnamed = LinkChecker(folder), _MisnamedImages()
    for entry in _find(folder, config.source.pattern):
        name, path = printable_path(entry.relative), folder / entry.relative
        reason = reason_to_skip(entry.relative.split("/")[:-1])
        if reason is None and entry.is_folder:
            others[name] = reason_to_skip([path.name]) or "the folder cannot be read; grant this user read permission"
            continue
        if reason is None and is_mask(name, config.images):
            masks[name] = path
            continue
        if reason is None and is_metadata(name, config.images):
            continue
        if reason is None and not entry.matches:
            reason = f"it does not match {config.source.pattern!r}"
        reason = reason or _reason_to_ignore(entry.relative, path, config, misnamed if entry.is_regular else None)
        if reason is None and entry.is_regular:
            files[name] = path
            continue
        reason = reason or links.reason_to_ignore(path)
        if reason is None and path.is_file():
            files[name] = path
        elif is_link(path) and path.is_dir():
            others[name] = "it is a linked folder, which is not followed; copy it, or set source.path"
        elif not path.is_dir():
            others[name] = reason or "it is no regular file"
    others |= surplus_files(files, config.source.limits.files)
    return LandingFolder({name: path for name, path in files.items() if name not in others}, others, masks)


class _Entry(NamedTuple):
    """Something in a landing folder that is no folder, except perhaps a link to one, or one that cannot be read.

    Attributes:
        relative: Path below the landing folder.
        is_regular: Whether it is known to be a regular file that no link has led to.
        is_folder: Whether it is a folder that cannot be read.
        matches: Whether it matches the pattern.
    """

    relative: str
    is_regular: bool
    is_folder: bool = False
    matches: bool = True


class _MisnamedImages:
    """Finds images among files with another suffix. Of many files, it looks into the first ones only."""

    def __init__(self) -> None:
        self._looks = _LOOKS

    def has(self, path: Path) -> bool:
        """Return whether a file was looked into, and is an image that can be read.

        Args:
            path: Path of a regular file whose suffix is not one of an image.
        """
        self._looks -= 1
        return self._looks >= 0 and _holds_image(path)


def _holds_image(path: Path) -> bool:
    """Return whether the content of a file is an image."""
    try:
        with path.open("rb") as file:
            return is_read_format(file.read(32))
    except OSError:
        return False


def _find(folder: Path, pattern: str) -> list[_Entry]:
    """Return everything below a folder, sorted by the parts of the path."""
    entries = [_Entry(*each) for each in _walk(str(folder), "")]
    if pattern != SourceConfig().pattern:
        matching = {str(path.relative_to(folder)) for path in folder.glob(pattern)}
        beside = matching - {each.relative for each in entries}  # in a linked folder that the pattern names
        entries = [each._replace(matches=each.relative in matching) for each in entries]
        entries += [_Entry(path, is_regular=False) for path in beside]
    return sorted(entries, key=lambda each: each.relative.split("/"))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, bool, bool]]:
    """Yield the relative path of everything below a folder, whether it is a regular file, and whether it is a folder.

    Folders are left out if they can be read. Links are not followed. A path object for each of 200,000 files, and a
    look at its kind, would take seconds.
    """
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    except PermissionError as error:
        if not prefix:
            raise StorageError(f"{folder} cannot be read; grant this user read permission") from error
        yield prefix.rstrip("/"), False, True
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.is_file(follow_symlinks=False), False


def is_read(relative: str, folder: Path, config: PipelineConfig) -> bool:
    """Return whether a regular file of a landing folder with the default pattern is read.

    Args:
        relative: Path of the file below the folder.
        folder: Landing folder.
        config: Configuration of the dataset.
    """
    return _reason_to_ignore(relative, folder / relative, config) is None


def _reason_to_ignore(
    relative: str, path: Path, config: PipelineConfig, misnamed: _MisnamedImages | None = None
) -> str | None:
    """Return why a file is not read, or None. Cameras give the names of some pictures a leading `_`.

    A reason is that of many files, so that it can be counted: it names neither the file nor a number in its name.
    """
    *folders, name = relative.split("/")
    if reason := reason_to_skip(folders):
        return reason
    if name.startswith("."):
        return "its name starts with '.', as that of a file that is still being written"
    if not can_read(name, config.images):
        known = _describe_suffix(path.suffix.lower())
        if config.images and misnamed and misnamed.has(path):
            return f"{known}, but it holds an image that can be read; rename it to .png or .jpg"
        return f"{known}; convert images to {IMAGE_FORMATS}" if config.images else known
    if _has_image_files(config) and (kind := format_of(name)[0]) in TEXT_SUFFIXES:
        describes = (
            "; if it describes images, set images.metadata to its name"
            if name.lower().endswith(_METADATA_SUFFIXES)
            else ""
        )
        return f"a {kind} file holds no images{describes}"
    if name.lower().endswith(".json") and path.is_file() and not _is_array(path):
        return "its content is no JSON array; rename it to .jsonl if each line is an object"
    if name.startswith("_") and not is_image(name):
        return "its name starts with '_', as that of a file that is still being written; rename it"
    return None


def _describe_suffix(suffix: str) -> str:
    """Return why a suffix is not read. Those that numbered files have are described alike."""
    if not suffix:
        return "it has no suffix"
    letters = suffix.removeprefix(".")
    named = "" if letters.isdigit() or len(letters) > _LONGEST_SUFFIX else f" {printable_path(suffix)!r}"
    return f"its suffix{named} is not one of a known format"


def _has_image_files(config: PipelineConfig) -> bool:
    """Return whether the rows are image files, and not rows of tables with images."""
    return config.images is not None and FILE_COLUMN in config.identity


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return starts_with_array(file.read(64))


def _kinds(config: PipelineConfig) -> str:
    if _has_image_files(config):
        return "PNG, JPEG, WebP, BMP or TIFF"
    tables = "CSV, JSON, JSON Lines, Excel, Parquet, Arrow or Avro"
    return f"PNG, JPEG, WebP, BMP, TIFF, {tables}" if config.images else tables


def landed_files(dataset: Dataset) -> dict[str, Path]:
    """Return the landed files to read, by their printable path below the landing folder; see `list_landed`."""
    return list_landed(dataset).files


def list_landed(dataset: Dataset) -> LandingFolder:
    """Return what `list_landing` returns, and require a file to read.

    Raises:
        StorageError: The folder does not exist, or contains no file of the dataset.
    """
    config, folder, landing = dataset.config, landing_address(dataset), list_landing(dataset)
    if landing.others and not landing.files:
        raise StorageError(
            f"none of the files in {folder} can be read for {config.dataset!r}: {landing.describe_others()}; put "
            f"{_kinds(config)} files there"
        )
    if landing.masks and not landing.files and config.images:
        raise StorageError(
            f"all of {pluralize(len(landing.masks), 'file')} in {folder} are masks by images.masks="
            f"{config.images.masks!r}, and none is an image; correct the pattern, so that it matches masks alone"
        )
    if not landing.files:
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {folder} is empty; put {_kinds(config)} files there that "
            f"match {config.source.pattern!r}"
        )
    return landing
