"""Section `source.limits` of `defs.yaml`: how much a landed file may hold."""

from pydantic import ByteSize, Field

from ae_pipeline.config.section import Section


class LimitsConfig(Section):
    """How much a landed file may hold. A file that exceeds a limit is refused, and all others are read.

    >>> LimitsConfig(file_bytes="1GiB").file_bytes == 2**30
    True
    """

    columns: int = Field(default=5000, ge=1, description="Maximum number of columns of a file.")
    rows: int = Field(default=10_000_000, ge=1, description="Maximum number of rows of a file.")
    rejected_rows: int = Field(
        default=250_000,
        ge=0,
        description="Maximum number of rows of a text file that cannot be read, such as rows with too few values. With "
        "more, the file is refused as a whole.",
    )
    file_bytes: ByteSize = Field(
        default=ByteSize(2 * 2**30), ge=1, description="Maximum size of a file as it landed, such as `2GiB`."
    )
    decompressed_bytes: ByteSize = Field(
        default=ByteSize(512 * 2**20),
        ge=1,
        description="Maximum size of the content of a compressed, Excel, Parquet, Arrow or Avro file, found out before "
        "it is read.",
    )
    compression_ratio: int = Field(
        default=200,
        ge=1,
        description="Maximum size of the content of a compressed, Excel, Arrow or Avro file, as a multiple of the size "
        "of the file. Content of at most 64 MiB may have any ratio.",
    )
    record_bytes: ByteSize = Field(
        default=ByteSize(2**20),
        ge=1,
        description="Maximum size of one row of a text file, or of its header. A longer row goes to quarantine without "
        "its text, and a file with a longer header is refused.",
    )
    pixels: int = Field(
        default=50_000_000, ge=1, description="Maximum number of pixels of an image. A larger one goes to quarantine."
    )
    archive_members: int = Field(default=1000, ge=1, description="Maximum number of files in a zip or Excel file.")
    files: int = Field(
        default=1_000_000,
        ge=1,
        description="Maximum number of files in the landing folder. With more, the oldest ones are read, and the log "
        "names the others.",
    )
