"""A problem in the state of a dataset, and its repair."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ae_pipeline.storage.integrity import move_aside
from ae_pipeline.storage.paths import DatasetPaths


def _nothing() -> None:
    """Leave a problem to the next run, which repairs it."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with one part of the state.

    Attributes:
        kind: Kind of state, such as `ledger`.
        subject: File, folder or version.
        message: What is wrong.
        remedy: What the repair does, and what is lost.
        repair: The repair; by default it is left to the next `ae-pipeline run`.
    """

    kind: str
    subject: str
    message: str
    remedy: str
    repair: Callable[[], object] = _nothing

    def as_json(self) -> dict[str, str]:
        """Return the problem as `ae-pipeline doctor --json` prints it."""
        return {"kind": self.kind, "subject": self.subject, "message": self.message, "remedy": self.remedy}


def remove(*files: Path) -> Callable[[], object]:
    """Return a repair that deletes derived files, so that the next run builds them again."""

    def repair() -> None:
        for path in files:
            path.unlink(missing_ok=True)

    return repair


def set_aside(path: Path, paths: DatasetPaths) -> Path:
    """Move a file that cannot be derived to `damaged/<dataset>` in the data folder, with the time in its name.

    Returns:
        Its new path.
    """
    return move_aside(path, paths.root / "damaged" / paths.dataset)
