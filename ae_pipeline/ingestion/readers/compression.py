"""Decompress files: gzip, Zstandard and zip."""

import gzip
import io
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath

import pyarrow as pa

from ae_pipeline.common.text import first_line
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.ingestion.readers.bounds import check_directory, check_stream, open_member
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.rows import UnreadableFileError

COMPRESSED_SUFFIXES = (".gz", ".zst", ".zip")


def decompress(
    kind: str, compression: str, data: bytes, formats: Sequence[str], limits: LimitsConfig
) -> tuple[str, bytes]:
    """Return the format and the content of a compressed file. A zip file must hold one file.

    Args:
        kind: Suffix of the file below that of the compression.
        compression: Suffix of the compression.
        data: Compressed content.
        formats: Suffixes of the formats that can be read.
        limits: Limits of the dataset.

    Raises:
        UnreadableFileError: The file is damaged, encrypted, too large, or does not hold exactly one file.
    """
    title = {".gz": "gzip", ".zst": "Zstandard", ".zip": "zip"}[compression]

    def message(error: BaseException) -> str:
        return f"not a complete {title} file ({first_line(error)}); it may be truncated: land it again"

    with library_errors_as(UnreadableFileError, message):
        if compression == ".zip":
            return _read_member(data, formats, limits)
        codec = "gzip" if compression == ".gz" else "zstd"
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            check_stream(stream, len(data), limits)
        if compression == ".gz":
            return kind, gzip.decompress(data)
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            return kind, stream.read()


def _read_member(data: bytes, formats: Sequence[str], limits: LimitsConfig) -> tuple[str, bytes]:
    check_directory(data, limits)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # macOS adds a folder with the attributes of each file.
        entries = [
            name
            for name in archive.namelist()
            if not name.endswith("/")
            and not name.startswith("__MACOSX/")
            and not PurePosixPath(name).name.startswith(".")
        ]
        if len(entries) != 1:
            names = ", ".join(entries[:5]) + (" …" if len(entries) > 5 else "")
            raise UnreadableFileError(
                f"the zip file holds {len(entries)} files{f': {names}' if names else ''}, not one; land each as a file "
                "of its own"
            )
        kind = PurePosixPath(entries[0]).suffix.lower()
        if kind not in formats:
            raise UnreadableFileError(
                f"the zip file holds {entries[0]}, whose format cannot be read; land a file with one of the suffixes "
                f"{', '.join(formats)}"
            )
        with open_member(archive, archive.getinfo(entries[0])) as stream:
            check_stream(stream, len(data), limits)
        return kind, archive.read(entries[0])
