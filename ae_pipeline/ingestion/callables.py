"""Fetch rows from Python functions."""

import importlib
import re
import traceback
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa

from ae_pipeline.common.errors import SourceError
from ae_pipeline.common.text import first_line
from ae_pipeline.storage.project import find_project


def load_callable(name: str, subject: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` names.

    Args:
        name: Module and function.
        subject: What fails, for messages, such as `the callable of 'orders'`.

    Raises:
        SourceError: The module cannot be imported, or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    importlib.invalidate_caches()
    try:
        function: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{subject}: no module {error.name!r} for {name}; install it, or put a Python file into the folder of the "
            f"dataset's YAML, and name it {find_project().module}.<dataset>.<file>:<function>"
        ) from error
    except Exception as error:  # the module may raise anything
        raise SourceError(
            f"{subject}: the module {module_name} cannot be imported: {describe(error)}; correct it"
        ) from error
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise SourceError(f"{subject}: the module {module_name} has no function {attribute!r}; correct source.callable")
    fetching: Callable[..., Any] = function
    return fetching


def call(function: Callable[..., Any], arguments: tuple[Any, ...], subject: str) -> pa.Table:
    """Return the rows that a function returns, as an Arrow table; without columns where it returns None.

    Args:
        function: Function that returns a table of polars, pandas or pyarrow, or None.
        arguments: Its arguments.
        subject: What fails, for messages.

    Raises:
        SourceError: The function raised an error, or returned no table.
    """
    try:
        result = function(*arguments)
    except Exception as error:  # the function may raise anything
        raise SourceError(f"{subject} failed: {describe(error)}; correct the function, and run again") from error
    try:
        return _as_arrow(result, subject)
    except (pa.ArrowException, pl.exceptions.PolarsError, ValueError, TypeError) as error:
        raise SourceError(
            f"{subject} returned a table that Arrow cannot hold: {first_line(error)}; give each column values of one "
            "type"
        ) from error


def describe(error: BaseException) -> str:
    """Return type, message and origin of an error of somebody else's code, without the user and password of URLs."""
    message = re.sub(r"://[^/\s]*@", "://***@", first_line(error) if isinstance(error, Exception) else str(error))
    frames = traceback.extract_tb(error.__traceback__)
    name = type(error).__name__
    text = name if message == name else f"{name}: {message}"
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _as_arrow(result: Any, subject: str) -> pa.Table:
    import pandas as pd

    if isinstance(result, pl.LazyFrame):
        result = result.collect()
    match result:
        case None:
            return pa.table({})
        case pl.DataFrame():
            if objects := [name for name, kind in result.schema.items() if kind == pl.Object]:
                raise TypeError(f"column {objects[0]!r} holds Python objects")
            return result.to_arrow()
        case pa.Table():
            return result
        case pa.RecordBatch():
            return pa.Table.from_batches([result])
        case pd.DataFrame():
            if any(name is not None for name in result.index.names):  # somebody has made a column the index
                result = result.reset_index()
            elif not pd.api.types.is_integer_dtype(result.index):
                raise TypeError("the index holds values and has no name, give it one, or drop it with reset_index")
            return pa.Table.from_pandas(result, preserve_index=False)
    raise SourceError(
        f"{subject} returned {type(result).__name__}, not a table; return a table of polars, pandas or pyarrow, or None"
    )
