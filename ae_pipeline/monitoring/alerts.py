"""Alerts: store them beside the data, and post them to a webhook if one is configured."""

import contextlib
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
"""Number of attempts to post a new alert."""

_TIMEOUT_SECONDS, _PAUSE_SECONDS = 10.0, 1.0

_MAX_POSTED_AGAIN = 20
"""Undelivered alerts that are posted again after a delivered one, so that the caller does not wait for long."""


class AlertEvent(StrEnum):
    """Kind of an alert."""

    RUN_FAILED = "run_failed"
    CHALLENGER_REJECTED = "challenger_rejected"
    CONTRACT_BROKEN = "contract_broken"
    OVER_BUDGET = "over_budget"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An event that a person should know about.

    Attributes:
        event: Kind of the event.
        key: Identifier. A second alert with the same key is not raised.
        message: Description of the event and of what to do.
        run_id: Dagster run that raised the alert.
        figures: Measured values, by name.
        subjects: Subjects of the event, by name and content. With subjects, an alert is raised only if at least one
            of them is new, even if its key is new.
        at: Time of the event, ISO 8601, UTC.
        delivered: Whether the webhook accepted the alert; None without a webhook.
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
    """Return the alerts of a dataset, the oldest first."""
    by_key: dict[str, Alert] = {}
    for line in lines_of(paths.alerts):
        with contextlib.suppress(KeyError, TypeError, ValueError):  # damaged, in a line without a checksum
            by_key[line["key"]] = Alert.from_record(line)
    return list(by_key.values())


def alerted_subjects(paths: DatasetPaths, event: AlertEvent) -> set[str]:
    """Return the subjects of all alerts of one kind."""
    return {subject for alert in alerts_of(paths) if alert.event == event for subject in alert.subjects}


def raise_alert(alert: Alert, dataset: Dataset) -> bool:
    """Store an alert and post it to the webhook, unless it was raised before.

    A webhook that fails does not raise an error. The alert stays undelivered, and is posted again after the next
    delivered alert.

    Args:
        alert: Alert to raise.
        dataset: Configuration and paths of the dataset.

    Returns:
        Whether the alert is new.
    """
    config, paths = dataset.config, dataset.paths
    previous = alerts_of(paths)
    if any(earlier.key == alert.key for earlier in previous):
        return False
    if alert.subjects and alerted_subjects(paths, alert.event).issuperset(alert.subjects):
        return False
    record = {**alert.record(), "delivered": False if config.alerts.webhook else None}
    add_line(paths.alerts, record)
    if not post(alert, config):
        return True
    add_line(paths.alerts, {**record, "delivered": True})
    for undelivered in [earlier for earlier in previous if earlier.delivered is False][:_MAX_POSTED_AGAIN]:
        if not post(undelivered, config, attempts=1):
            break
        add_line(paths.alerts, {**undelivered.record(), "delivered": True})
    return True


def post(alert: Alert, config: PipelineConfig, attempts: int = ATTEMPTS) -> bool | None:
    """Post an alert to the webhook as JSON.

    Args:
        alert: Alert to post.
        config: Configuration of the dataset; its `alerts.webhook` names the environment variable with the URL.
        attempts: Number of attempts.

    Returns:
        Whether the webhook accepted the alert; None without a webhook.
    """
    variable = config.alerts.webhook
    if variable is None:
        return None
    url = os.environ.get(variable, "").strip()
    if not _is_http_url(url):
        logger.warning(
            f"the environment variable {variable} of alerts.webhook contains no URL; set it to a URL that starts with "
            "http:// or https://"
        )
        return False
    # Chat programs display the key "text".
    body = {"text": f"{config.dataset}: {alert.message}", "dataset": config.dataset, **alert.record()}
    for internal in ("delivered", "subjects"):
        del body[internal]
    request = urllib.request.Request(  # noqa: S310
        url, json.dumps(body, default=str).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    reason = ""
    for attempt in range(attempts):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
                return True
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = _reason(error)
            if attempt + 1 < attempts:
                time.sleep(_PAUSE_SECONDS * 2**attempt)
    logger.warning(
        f"the webhook in {variable} did not accept an alert ({reason}); it is posted again after the next one"
    )
    return False


def _is_http_url(text: str) -> bool:
    try:
        url = urllib.parse.urlparse(text)
        return url.scheme in {"http", "https"} and bool(url.hostname)
    except ValueError:
        return False


def _reason(error: Exception) -> str:
    """Return why a request failed, without the text of the error: it may contain the secret URL."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, OSError) else error
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__
