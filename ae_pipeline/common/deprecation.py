"""Deprecation warnings: the old name works for one release and the warning names the new one."""

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
    warnings.warn(
        f"{old!r} in {location} is deprecated and will be removed in version {REMOVED_IN}; write {new!r} instead",
        DeprecationWarning,
        stacklevel=3,
    )


def show_deprecations() -> None:
    """Print our deprecation warnings, which Python hides by default."""
    warnings.filterwarnings("default", message=".* will be removed in version", category=DeprecationWarning)
