"""Errors that libraries raise on damaged or unusual files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def library_errors_as(kind: type[Exception], message: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn any error that a library raises on a file into one kind of error.

    Extensions written in Rust raise `PanicException`, which is no `Exception`. Errors of this kind pass unchanged, and
    so does what a file is not to blame for: interrupts and a lack of memory.

    Args:
        kind: Error to raise.
        message: Function that makes the message from the original error.
    """
    try:
        yield
    except (kind, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(message(error)) from error
