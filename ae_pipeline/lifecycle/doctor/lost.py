"""Check of the object store: files of the state whose content it has lost."""

from collections.abc import Iterator

from ae_pipeline.common.errors import LostFileError
from ae_pipeline.lifecycle.doctor.problem import Problem
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import refresh


def lost_files(paths: DatasetPaths) -> Iterator[Problem]:
    """Bring the files of this machine up to date, and yield what hinders it.

    Raises:
        StorageError: The object store does not answer.
    """
    try:
        refresh(paths)
    except LostFileError as error:
        yield Problem(
            kind="object store",
            subject=paths.dataset,
            message=str(error),
            remedy="leave out what is lost; an older copy on this machine takes its place",
        )
