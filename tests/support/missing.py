"""Programs that tests need and a machine may lack: the tests are skipped there, and fail in CI, which installs them."""

import os
import shutil
from typing import NoReturn

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no browser: install the Debian package chromium"
)


def skip_unless_ci(reason: str) -> NoReturn:
    """Skip a test that lacks a program, or fail where the variable `CI` is set.

    Args:
        reason: What is missing.
    """
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must have it, see .ci/run", pytrace=False)
    pytest.skip(reason)
