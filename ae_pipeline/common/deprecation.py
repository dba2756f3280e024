"""Deprecation warnings: the old name works for one release and the warning names the new one."""

import sys
import warnings

REMOVED_IN = "0.3"
"""Release that removes what is deprecated today."""


def warn_deprecated(old: str, new: str, location: str) -> None:
    """Warn that a name is deprecated.

    Args:
        old: Deprecated name.
        new: Name to use instead.
        location: File or section that holds the old name, such as `gate`.
    """
    warn(f"{old!r} in {location} is deprecated and will be removed in version {REMOVED_IN}; write {new!r} instead")


def warn(message: str) -> None:
    """Issue a deprecation warning. After `show_deprecations`, print it too, each message once.

    Dagster hides deprecation warnings while it loads definitions, so a filter for warnings is not enough.
    """
    if _shown is not None and message not in _shown:
        _shown.add(message)
        sys.stderr.write(f"DeprecationWarning: {message}\n")
    warnings.warn(message, DeprecationWarning, stacklevel=3)


_shown: set[str] | None = None
"""Messages that were printed; None if messages are not printed."""


def show_deprecations() -> None:
    """Print our deprecation warnings from now on. Python hides them by default."""
    global _shown  # noqa: PLW0603
    _shown = set()
