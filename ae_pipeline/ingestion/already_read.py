"""Rows of landed files that were read for the first schema contract, and need not be read again."""

import os
from dataclasses import dataclass

from ae_pipeline.ingestion.readers.files import ReadOptions, leave_out
from ae_pipeline.ingestion.readers.image_rows import ImageRow
from ae_pipeline.ingestion.rows import FileRows


@dataclass(frozen=True)
class AlreadyRead:
    """Rows of a landed file, and the state of the file just before it was read.

    Attributes:
        file: Its rows.
        size: Size of the file in bytes.
        modified_ns: Modification time of the file in ns since 1970.
    """

    file: FileRows | ImageRow
    size: int
    modified_ns: int

    @classmethod
    def of(cls, file: FileRows | ImageRow, stat: os.stat_result) -> "AlreadyRead":
        """Return the rows of a file whose state was looked up before."""
        return cls(file, stat.st_size, stat.st_mtime_ns)

    def rows_under(self, options: ReadOptions, stat: os.stat_result) -> FileRows | ImageRow | None:
        """Return the rows under the options of the schema contract, or None if the file must be read again.

        Args:
            options: How the file is read under the contract.
            stat: State of the file now. What lands while the contract is inferred must not get the earlier rows.
        """
        if (self.size, self.modified_ns) != (stat.st_size, stat.st_mtime_ns):
            return None
        if isinstance(self.file, ImageRow):
            return self.file if options.left_out.isdisjoint(self.file.texts) else None
        return leave_out(self.file, options)
