"""A question that a person must answer before something is removed."""

import sys

from ae_pipeline.common.errors import ConfigError


def confirm(question: str, expected: str, unchanged: str, option: str) -> None:
    """Ask a question on the terminal, and return if the answer is the expected one.

    Args:
        question: Question, which says what to write.
        expected: Answer that is needed.
        unchanged: What is true without it, such as "nothing was removed".
        option: Option that leaves the question out, and what it does then.

    Raises:
        ConfigError: The answer is another one, or there is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"{unchanged}, because there is no terminal to confirm it; add {option}")
    try:
        answer = input(f"\n{question}")
    except EOFError:
        answer = ""
    if answer.strip() != expected:
        raise ConfigError(f"{unchanged}, because {answer.strip()!r} is not {expected!r}; run it again to answer")
