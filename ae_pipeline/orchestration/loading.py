"""What is switched off while the definitions load."""

import contextlib
import gc
import warnings
from collections.abc import Iterator

import dagster as dg


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the search for cycles. With many datasets it takes a fifth of the time, and nothing is garbage yet."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


@contextlib.contextmanager
def without_dagster_warnings() -> Iterator[None]:
    """Ignore what Dagster ignores while it loads a defs folder."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, dg.BetaWarning, dg.PreviewWarning, dg.SupersessionWarning):
            warnings.simplefilter("ignore", category)
        yield
