"""A test that lacks a program is skipped on a machine of a user, and fails in CI."""

import pytest

from tests.support.missing import skip_unless_ci


@pytest.mark.parametrize(("value", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_ci_skips_no_test_that_lacks_a_program(
    monkeypatch: pytest.MonkeyPatch, value: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", value)
    with pytest.raises(outcome, match="no server"):
        skip_unless_ci("no server")
