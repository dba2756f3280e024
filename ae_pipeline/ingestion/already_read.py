"""Rows of landed files that were read for the first schema contract, and need not be read again."""

import hashlib
from dataclasses import dataclass

from ae_pipeline.ingestion.readers.files import ReadOptions, leave_out
from ae_pipeline.ingestion.readers.image_rows import ImageRow
from ae_pipeline.ingestion.rows import FileRows


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
