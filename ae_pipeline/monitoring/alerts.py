"""Alerts: kept beside the data, shown in the report, and posted to a webhook where one is configured."""

import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ae_pipeline.common.timestamps import now
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.jsonl import add_line, lines_of
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often an alert is posted before it waits for the next one to be raised."""

_TIMEOUT_SECONDS, _PAUSE_SECONDS = 10.0, 1.0

_WAITING = 20
"""How many that wait are posted after one that was taken: whoever raises it must not be held up for long."""


class AlertEvent(StrEnum):
    """What an alert is of."""

    RUN_FAILED = "run_failed"
    CHALLENGER_REJECTED = "challenger_rejected"
    CONTRACT_BROKEN = "contract_broken"
    OVER_BUDGET = "over_budget"


@dataclass(frozen=True)
class Alert:
    """Something that a person should look at.

    Attributes:
        event: What kind.
        key: Names it: an alert of the same key is raised once.
        message: What happened, and what to do.
        run_id: Dagster run that found it.
        figures: What was measured.
        subjects: What it is about, by name and content; where given, an alert is new if one of them is, whatever its
            key.
        at: When, ISO 8601, UTC.
        delivered: Whether the webhook took it; None where none is configured.
    """

    event: AlertEvent
    key: str
    message: str
    run_id: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    subjects: tuple[str, ...] = ()
    at: str = field(default_factory=now)
    delivered: bool | None = None

    def record(self) -> dict[str, Any]:
        """Return the alert as files and webhooks have it: the message is under the key `words`."""
        values = asdict(self)
        return {"words" if name == "message" else name: value for name, value in values.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Alert":
        """Return the alert that `record` stored."""
        values = {"message" if name == "words" else name: value for name, value in record.items()}
        subjects = tuple(record.get("subjects", ()))
        return cls(**{**values, "event": AlertEvent(record["event"]), "subjects": subjects})


def alerts_of(paths: DatasetPaths) -> list[Alert]:
    """Reads the alerts that were raised, the oldest first."""
    found = {line["key"]: Alert.from_record(line) for line in lines_of(paths.alerts)}
    return list(found.values())


def alerted_subjects(paths: DatasetPaths, event: AlertEvent) -> set[str]:
    """Gives the subjects of all alerts of a kind."""
    return {subject for alert in alerts_of(paths) if alert.event == event for subject in alert.subjects}


def raise_alert(alert: Alert, dataset: Dataset) -> bool:
    """Keeps an alert, and then posts it, unless one of the same key was raised before.

    A webhook that cannot be reached stops nothing: the alert is kept as not delivered, and posted again after the next
    one that is.

    Args:
        alert: What happened.
        dataset: Configuration and paths of the dataset.

    Returns:
        Whether it is new.
    """
    config, paths = dataset.config, dataset.paths
    previous = alerts_of(paths)
    if any(earlier.key == alert.key for earlier in previous):
        return False
    if alert.subjects and alerted_subjects(paths, alert.event).issuperset(alert.subjects):
        return False
    kept = {**alert.record(), "delivered": False if config.alerts.webhook else None}
    add_line(paths.alerts, kept)
    if not post(alert, config):
        return True
    add_line(paths.alerts, {**kept, "delivered": True})
    for waiting in [earlier for earlier in previous if earlier.delivered is False][:_WAITING]:
        if not post(waiting, config, attempts=1):
            break
        add_line(paths.alerts, {**waiting.record(), "delivered": True})
    return True


def post(alert: Alert, config: PipelineConfig, attempts: int = ATTEMPTS) -> bool | None:
    """Posts an alert as JSON; gives whether the webhook took it, None where none is configured."""
    variable = config.alerts.webhook
    if variable is None:
        return None
    address = os.environ.get(variable, "").strip()
    if not _is_address(address):
        logger.warning(
            f"alerts.webhook names {variable}, which holds no address; set it to one that begins with http:// or https://"
        )
        return False
    # What chat programs show is called text.
    body = {"text": f"{config.dataset}: {alert.message}", "dataset": config.dataset, **alert.record()}
    for inward in ("delivered", "subjects"):
        del body[inward]
    request = urllib.request.Request(  # noqa: S310
        address, json.dumps(body, default=str).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    reason = ""
    for attempt in range(attempts):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
                return True
        except (OSError, ValueError, http.client.HTTPException) as error:
            # The address is a secret, and what errors say may quote it.
            reason = _kind(error)
            if attempt + 1 < attempts:
                time.sleep(_PAUSE_SECONDS * 2**attempt)
    logger.warning(f"the webhook in {variable} did not take an alert ({reason}); it is posted again after the next one")
    return False


def _is_address(text: str) -> bool:
    try:
        found = urllib.parse.urlparse(text)
        return found.scheme in {"http", "https"} and bool(found.hostname)
    except ValueError:
        return False


def _kind(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = getattr(error, "reason", None)
    told = reason if isinstance(reason, OSError) else error
    return (told.strerror if isinstance(told, OSError) else None) or type(told).__name__
