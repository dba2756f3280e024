"""What a run prints: its own messages, a line each, without Dagster's bookkeeping."""

import logging
import sys
import time
from typing import Any, TypeVar

import dagster as dg

T = TypeVar("T")

LOGGERS: dict[str, Any] = {"loggers": {"console": {"config": {}}}}
"""Run config that chooses our console; without it Dagster prints every event it stores."""


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "dagster_meta", {}) or {}
        step = facts.get("step_key") or facts.get("op_name") or ""
        message = facts.get("orig_message") or record.getMessage()
        level = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        return (
            f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {step.split('__')[-1]:<16} {level}{message}"
        )


class _OwnMessages(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        facts = getattr(record, "dagster_meta", {}) or {}
        return facts.get("dagster_event") is None or record.levelno >= logging.ERROR


@dg.logger(
    config_schema={"log_level": dg.Field(str, default_value="INFO", is_required=False)},
    description="One short line a message.",
)
def line_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Prints messages of assets and errors of runs."""
    logger = logging.Logger("ae_pipeline", level=context.logger_config["log_level"])
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Line())
    handler.addFilter(_OwnMessages())
    logger.addHandler(handler)
    return logger
