"""Read one sheet of an Excel file."""

from typing import Any

import fastexcel
import polars as pl
import pyarrow as pa

from ae_pipeline.common.text import first_line
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.config.source import SourceConfig
from ae_pipeline.ingestion.readers.bounds import check_table, check_workbook
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError, check_names, rejected_rows


def read_excel(data: bytes, source: SourceConfig) -> FileRows:
    """Read a sheet of an Excel file. Its first row is the header.

    Dates and times keep their type. All other values are text, as in a CSV file: a whole number has no decimals. Excel
    itself keeps 15 digits of a number. A row with an error such as `#DIV/0!` is rejected. A row without any value is no
    row.

    Args:
        data: Content of the file.
        source: Settings that name the sheet.

    Raises:
        UnreadableFileError: The file is damaged, the sheet does not exist, or it is not clear which one to read.
    """

    def message(error: BaseException) -> str:
        return f"not a complete Excel file ({first_line(error)}); it may be truncated: land it again"

    with library_errors_as(UnreadableFileError, message):
        check_workbook(data, source.limits)
        book = fastexcel.read_excel(data)
        sheet = _choose(book.sheet_names, source.sheet)
        names = _header(book, sheet, source.limits)
        typed = book.load_sheet(sheet, header_row=None, skip_rows=1, column_names=names, schema_sample_rows=None)
        times = {name: dtype for name, dtype in _dtypes(typed).items() if dtype in {"date", "datetime"}}
        dtypes: Any = {name: times.get(name, "string") for name in names}
        batch, errors = book.load_sheet(
            sheet, header_row=None, skip_rows=1, column_names=names, dtypes=dtypes
        ).to_arrow_with_errors()
        frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch])))
    rows = frame.with_columns(
        *_midnights_as_dates(frame), pl.Series("_row_number", range(2, frame.height + 2), dtype=pl.Int64)
    )
    is_wrong = {error.offset_position[0]: error for error in (errors.errors if errors else ())}
    record = pl.struct(pl.all().cast(pl.String)).struct.json_encode()
    records = frame.select(record).to_series() if is_wrong else pl.Series()
    rejected = [
        (
            index + 2,
            f"{names[error.offset_position[1]]}: cell",
            f"the cell of {names[error.offset_position[1]]} has no value ({error.detail}); correct it in Excel",
            str(records[index]),
        )
        for index, error in sorted(is_wrong.items())
    ]
    is_empty = pl.all_horizontal(pl.col(names).is_null())
    kept = rows.filter(~is_empty & ~pl.col("_row_number").is_in([number for number, *_ in rejected]))
    return FileRows(kept, rejected_rows(rejected))


def _choose(sheets: list[str], chosen: str | None) -> str:
    if chosen is None and len(sheets) == 1:
        return sheets[0]
    if chosen in sheets:
        return chosen
    problem = "no sheet" if not sheets else f"the sheets {', '.join(map(repr, sheets))}"
    missing = f" and no sheet {chosen!r}" if chosen else ""
    raise UnreadableFileError(f"the file has {problem}{missing}; name the one to read as source.sheet in the YAML")


def _header(book: fastexcel.ExcelReader, sheet: str, limits: LimitsConfig) -> list[str]:
    first = book.load_sheet(sheet, header_row=None, n_rows=1, dtypes="string").to_arrow()
    landed = [str(column[0].as_py() or "").strip() for column in first.columns] if first.num_rows else []
    check_table(limits, columns=len(landed))
    if not any(landed):
        raise UnreadableFileError("the sheet has no header in its first row; write the column names there")
    names = [each or f"unnamed_{position}" for position, each in enumerate(landed, 1)]
    check_names(names)
    return names


def _dtypes(sheet: fastexcel.ExcelSheet) -> dict[str, str]:
    return {column.name: column.dtype for column in sheet.available_columns()}


def _midnights_as_dates(frame: pl.DataFrame) -> list[pl.Expr]:
    """Return the columns of times that are all at midnight as dates: Excel has no type for a date without a time."""
    times = {name: frame[name].drop_nulls() for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)}
    return [
        pl.col(name).cast(pl.Date)
        for name, values in times.items()
        if len(values) and (values == values.dt.truncate("1d")).all()
    ]
