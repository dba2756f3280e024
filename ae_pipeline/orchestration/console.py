"""Console output of a run: one line for each message of ours, without Dagster's events."""

import logging
import sys
import time
from typing import Any

import dagster as dg

from ae_pipeline.common.escape import terminal_lines
from ae_pipeline.common.signals import stop_signal

LOGGERS: dict[str, Any] = {"loggers": {"console": {"config": {}}}}
"""Run config that selects our console logger. Without it, Dagster prints every event that it stores."""

PACKAGE_LOGGER = "ae_pipeline"
"""Logger of the package. `managed_python_loggers` in dagster.yaml names it, so that Dagster captures its messages."""


def format_line(step: str, message: str, created: float) -> str:
    """Return a console line: time, step, message."""
    text = terminal_lines(message)
    return f"{time.strftime('%H:%M:%S', time.localtime(created))}  {step:<16} {text}"


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        metadata = getattr(record, "dagster_meta", {}) or {}
        step = metadata.get("step_key") or metadata.get("op_name") or ""
        message = metadata.get("orig_message") or record.getMessage()
        level = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        return format_line(step.split("__")[-1], f"{level}{message}", record.created)


def print_package_messages(instance: dg.DagsterInstance) -> None:
    """Print what the package logs, if the instance does not capture it: its dagster.yaml lacks `python_logs`."""
    if PACKAGE_LOGGER not in instance.managed_python_loggers:
        print_messages()


def print_messages() -> None:
    """Print what the package logs in this process outside of runs."""
    package = logging.getLogger(PACKAGE_LOGGER)
    if package.handlers:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter())
    package.addHandler(handler)
    package.setLevel(logging.INFO)


class _MessageFilter(logging.Filter):
    """Drop Dagster's events, except for errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        metadata = getattr(record, "dagster_meta", {}) or {}
        if metadata.get("dagster_event") is None:
            return True
        # An interrupt that somebody asked for is no error.
        return record.levelno >= logging.ERROR and stop_signal() is None


@dg.logger(
    config_schema={"log_level": dg.Field(str, default_value="INFO", is_required=False)},
    description="Prints one line for each message.",
)
def line_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Return a logger that prints the messages of assets and the errors of runs."""
    logger = logging.Logger(PACKAGE_LOGGER, level=context.logger_config["log_level"])
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter())
    handler.addFilter(_MessageFilter())
    logger.addHandler(handler)
    return logger
