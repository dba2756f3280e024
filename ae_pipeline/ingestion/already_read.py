"""Rows of landed files that were read for the first schema contract, and need not be read again."""

import hashlib
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion.readers.files import ReadOptions, leave_out
from ae_pipeline.ingestion.readers.image_rows import ImageRow
from ae_pipeline.ingestion.rows import FileRows
from ae_pipeline.storage.files import make_folder


@dataclass(frozen=True)
class AlreadyRead:
    """Rows of a landed file, and what they were made from.

    Attributes:
        name: Path of the file below the landing folder.
        file: Its rows.
        sha256: Hash of the content that was read.
        metadata: Fingerprint of the metadata that an image got; None if there were none.
    """

    name: str
    file: FileRows | ImageRow
    sha256: str
    metadata: str | None

    @classmethod
    def of(cls, name: str, file: FileRows | ImageRow, data: bytes, options: ReadOptions) -> "AlreadyRead":
        """Return the rows of a file that was read from its content under some options."""
        return cls(name, file, hashlib.sha256(data).hexdigest(), options.metadata.fingerprint(name))

    def spilled(self, folder: Path) -> "AlreadyRead | None":
        """Return the same with the pixels of an image in a temporary file, or None if that is not possible.

        The system deletes the file with the last reference to the pixels.

        Args:
            folder: Folder for the file.
        """
        if not isinstance(self.file, ImageRow) or not self.file.pixels.nbytes:
            return None
        pixels = self.file.pixels
        with suppress(OSError, StorageError), tempfile.TemporaryFile(dir=make_folder(folder)) as file:
            pixels.tofile(file)
            file.flush()
            mapped = np.memmap(file, pixels.dtype, "r", shape=pixels.shape)
            return replace(self, file=replace(self.file, pixels=np.asarray(mapped)))
        return None

    def rows_under(self, options: ReadOptions, sha256: str) -> FileRows | ImageRow | None:
        """Return the rows under the options of the schema contract, or None if the file must be read again.

        Args:
            options: How the file is read under the contract. Metadata can land while the contract is inferred.
            sha256: Hash of the content of the file now. Another one must not get the earlier rows.
        """
        if (self.sha256, self.metadata) != (sha256, options.metadata.fingerprint(self.name)):
            return None
        if isinstance(self.file, ImageRow):
            return self.file if options.left_out.isdisjoint(self.file.texts) else None
        return leave_out(self.file, options)
