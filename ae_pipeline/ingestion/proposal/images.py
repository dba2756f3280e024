"""Propose the YAML of a dataset of image files: layout of the folders, size, and rows as images or patches."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import pluralize, printable_path
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.ingestion.image_files import look_at_image
from ae_pipeline.ingestion.skipped_folders import is_skipped

PATCH, STRIDE, RESIZED = 32, 16, 256
"""Sides that are proposed, in pixels: of a patch, from one patch to the next, and the shorter side of large images."""

_MAX_WHOLE = 64
"""Side up to which an image is a row as a whole."""

_READ_FILES = 200
"""Images whose size and channels the proposal rests on."""

_MODES = {"1": "grey", "L": "grey", "LA": "grey", "I": "grey", "F": "grey"}


@dataclass(frozen=True)
class _Layout:
    """Folders of a well-known kind of dataset.

    Attributes:
        name: Name of the layout, for the comment.
        training: Pattern of an image for training.
        lines: Lines of the YAML below `images`, which do not depend on the size.
        conditions: Further lines of the YAML.
    """

    name: str
    training: re.Pattern[str]
    lines: tuple[str, ...]
    conditions: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """Folder of the images, for `source.pattern`; empty if it is the whole folder."""
        return "Data/Images/" if self.name == "VisA" else ""


_MVTEC_CONDITIONS = (
    "label: defect <> 'good' # the report measures the scores with it",
    "training:",
    "  where: split = 'train' # test images are scored, and never in the training",
    "  only_normal: true",
)
_LAYOUTS = (
    _Layout(
        "MVTec AD",
        re.compile(r"^train/good/[^/]+$"),
        (
            "path: (?P<split>train|test)/(?P<defect>[^/]+)/ # folders become columns",
            'masks: "ground_truth/{defect}/{stem}_mask.png" # measure heat maps with them',
        ),
        _MVTEC_CONDITIONS,
    ),
    _Layout(
        "MVTec AD, with a folder for each product (a dataset for each gives each its own model)",
        re.compile(r"/train/good/[^/]+$"),
        (
            "path: ^(?P<product>.+)/(?P<split>train|test)/(?P<defect>[^/]+)/ # folders become columns",
            'masks: "{product}/ground_truth/{defect}/{stem}_mask.png" # measure heat maps with them',
        ),
        _MVTEC_CONDITIONS,
    ),
    _Layout(
        "VisA",
        re.compile(r"^Data/Images/Normal/[^/]+$"),
        (
            "path: Images/(?P<kind>[^/]+)/ # the folder becomes a column",
            'masks: "Data/Masks/{kind}/{stem}.png" # measure heat maps with them',
        ),
        (
            "label: kind <> 'Normal' # the report measures the scores with it",
            "training:",
            "  only_normal: true",
        ),
    ),
)


def propose_images(name: str, folder: Path, images: Sequence[Path], source: Path | None, least: int) -> str:
    """Return the YAML of a dataset of image files.

    Args:
        name: Name of the dataset.
        folder: Folder below which the images lie.
        images: Image files.
        source: Folder where the files stay, or None for the default landing folder.
        least: Number of images that a training needs.

    Raises:
        StorageError: No image can be read, or there are too few for a training.
    """
    names = [path.relative_to(folder).as_posix() for path in images]
    layout = next((each for each in _LAYOUTS if any(each.training.search(path) for path in names)), None)
    rows = [path for path in names if layout is None or re.search(layout.lines[0].split()[1], path)]
    if len(rows) < least:
        raise StorageError(
            f"{folder} holds {pluralize(len(rows), 'image')}, but a training needs at least {least}; add images"
        )
    pattern = f', pattern: "{layout.prefix}**/*"' if layout and layout.prefix else ""
    sides, modes = _sizes([folder / path for path in rows[:: max(1, len(rows) // _READ_FILES)]])
    is_whole = max(map(max, sides)) <= _MAX_WHOLE
    return "\n".join(
        [
            "type: ae_pipeline.orchestration.component.AutoencoderPipeline",
            "",
            f"# Proposed from {pluralize(len(rows), 'image')}"
            + (f" in the layout of {layout.name}." if layout else "."),
            "attributes:",
            f"  dataset: {name}",
            '  description: "" # say what the images show, and where they come from',
            *([f"  source: {{path: {json.dumps(str(source))}{pattern}}}"] if source else []),
            "",
            f"  identity: [{'file' if is_whole else 'file, top, left'}]",
            "  images:" + ("" if (lines := [*_image_lines(sides, modes, is_whole, layout)]) else " {}"),
            *(f"    {line}" for line in lines),
            *(f"  {line}" for line in _conditions(layout, is_whole)),
            "",
            "  model:",
            "    architecture: conv",
            "    latent_dim: 64",
            "    channels: [16, 32]",
            "    up: upsample",
            "    activation: gelu",
            "    scaling: standard",
            "",
        ]
    )


_UNLABELED = ("# label: file IN ('a.png') # known anomalies; or a column of metadata.csv beside the images",)
_TURNED = "  augmentation: turns # at random; remove it if a mirrored or turned patch is an anomaly"


def _conditions(layout: _Layout | None, is_whole: bool) -> Iterator[str]:
    yield from layout.conditions if layout else _UNLABELED
    if not is_whole:
        yield from (_TURNED,) if layout else ("training:", _TURNED)


def _image_lines(
    sides: Counter[tuple[int, int]], modes: Counter[str], is_whole: bool, layout: _Layout | None
) -> Iterator[str]:
    yield from layout.lines if layout else ()
    if len(modes) > 1:
        yield f"mode: {'grey' if set(modes) == {'grey'} else 'rgb'} # the images have {' and '.join(sorted(modes))}"
    height, width = sides.most_common(1)[0][0]
    if is_whole:
        if len(sides) > 1:
            yield f"resize: [{height}, {width}] # the images have {len(sides)} sizes, and this is the most frequent one"
        return
    shorter = [min(side) for side in sides.elements()]
    if median_low(shorter) > RESIZED * 5 // 4:  # of most images: a thumbnail among photographs decides nothing
        remark = f"the shorter side; the images have up to {max(map(max, sides)):,} pixels"
        if smaller := sum(side < RESIZED for side in shorter):
            remark += f"; {pluralize(smaller, 'smaller image')} of {len(shorter):,} will be enlarged"
        yield f"resize: {RESIZED} # {remark}"
    yield f"patch: {PATCH} # each image is cut into patches, and gets a verdict from their scores"
    yield f"stride: {STRIDE}"


def _sizes(paths: Sequence[Path]) -> tuple[Counter[tuple[int, int]], Counter[str]]:
    """Return how many images have each size, as height and width, and each mode."""
    sides: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    for path in paths:
        look = look_at_image(path)
        if look and math.prod(look[:2]) <= LimitsConfig().pixels:  # others go to quarantine later
            height, width, mode = look
            sides[height, width] += 1
            modes[_MODES.get(mode.partition(";")[0], "rgba" if mode in {"RGBA", "PA"} else "rgb")] += 1
    if not sides:
        raise StorageError(
            f"none of {pluralize(len(paths), 'image')} can be read, such as "
            f"{printable_path(str(paths[0]))}; give other images"
        )
    return sides, modes


OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jp2", ".jxl")
"""Suffixes of images that phones and cameras write, and that are not read."""


def describe_unread(folder: Path) -> str:
    """Return how many images below a folder have a format that is not read, and the remedy; empty if none has."""
    if not (unread := images_in(folder, OTHER_SUFFIXES)):
        return ""
    name = printable_path(str(unread[0].relative_to(folder)))
    return f"{pluralize(len(unread), 'image')} such as {name} cannot be read; convert them to JPEG or PNG"


def images_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the visible image files below a folder, by their suffix.

    Args:
        folder: Folder to look into.
        suffixes: Suffixes of image files.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return [path for path in paths if not is_skipped(path, folder)]
