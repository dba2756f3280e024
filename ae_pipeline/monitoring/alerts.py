"""Alerts: store them beside the data, and post them to a webhook if one is configured."""

import contextlib
import datetime as dt
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.timestamps import now
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.monitoring.webhook import PostResult, is_http_url, post_json
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.jsonl import add_line, lines_of
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import recording

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Number of attempts to post a new alert."""

MAX_FAILURES = 15
"""Failed posts after which an alert is a dead letter: it is not posted again, and the report lists it."""

_PAUSE_SECONDS = 1.0

_MAX_PAUSE = dt.timedelta(hours=6)
"""Longest pause between two posts of a queued alert. It starts with a minute and doubles."""

_MAX_POSTED_AGAIN = 20
"""Queued alerts that one run posts, so that it does not wait for long."""


class AlertEvent(StrEnum):
    """Kind of an alert."""

    RUN_FAILED = "run_failed"
    CHALLENGER_REJECTED = "challenger_rejected"
    CONTRACT_BROKEN = "contract_broken"
    OVER_BUDGET = "over_budget"
    UNUSUAL_DAY = "unusual_day"
    NULL_FLOOD = "null_flood"
    DRIFT = "drift"
    MISSING_ROWS = "missing_rows"
    LOW_RECALL = "low_recall"
    LOW_IMAGE_RECALL = "low_image_recall"


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
        failures: Number of runs that posted it in vain.
        reason: Why the last post failed; empty if none did.
        tried_at: Time of the last failed post, ISO 8601, UTC.
    """

    event: AlertEvent
    key: str
    message: str
    run_id: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    subjects: tuple[str, ...] = ()
    at: str = field(default_factory=now)
    delivered: bool | None = None
    failures: int = 0
    reason: str = ""
    tried_at: str = ""

    @property
    def is_queued(self) -> bool:
        """Whether a later run posts it."""
        return self.delivered is False and self.failures < MAX_FAILURES

    @property
    def is_dead(self) -> bool:
        """Whether it was posted in vain too often."""
        return self.delivered is False and not self.is_queued

    @property
    def is_due(self) -> bool:
        """Whether the pause since the last failed post has passed."""
        if not self.tried_at:
            return True
        pause = min(dt.timedelta(minutes=2 ** (max(self.failures, 1) - 1)), _MAX_PAUSE)
        return dt.datetime.fromisoformat(self.tried_at) + pause <= dt.datetime.now(dt.UTC)

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

    A webhook that fails does not raise an error. The alert is queued, and later runs post it again.

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
    _add(alert, paths, {"delivered": False if config.alerts.webhook else None})
    if _deliver(alert, dataset, ATTEMPTS):
        _post_queued(dataset, previous)  # the webhook works, so no alert waits for the end of its pause
    return True


def post_due_alerts(dataset: Dataset) -> bool:
    """Post the queued alerts whose pause has passed, and return whether the state of one changed.

    Args:
        dataset: Configuration and paths of the dataset.
    """
    if dataset.config.alerts.webhook is None:
        return False
    return _post_queued(dataset, [alert for alert in alerts_of(dataset.paths) if alert.is_due])


def _add(alert: Alert, paths: DatasetPaths, outcome: Mapping[str, Any]) -> None:
    with recording(paths, paths.alerts) as save:
        add_line(paths.alerts, {**alert.record(), **outcome})
        try:
            save()
        except StorageError as error:  # it can be what the alert is about
            logger.warning(f"an alert of {paths.dataset!r} is not in the object store yet: {error}")


def _post_queued(dataset: Dataset, alerts: list[Alert]) -> bool:
    queued = [alert for alert in alerts if alert.is_queued][:_MAX_POSTED_AGAIN]
    for alert in queued:
        # An answer says that the server is there: another alert may pass. Without one, the others wait too.
        if not _deliver(alert, dataset, attempts=1) and not _last_reason(alert, dataset).startswith("HTTP status 4"):
            break
    return bool(queued)


def _last_reason(alert: Alert, dataset: Dataset) -> str:
    return next((stored.reason for stored in alerts_of(dataset.paths) if stored.key == alert.key), "")


def _deliver(alert: Alert, dataset: Dataset, attempts: int) -> bool:
    """Post an alert, store the outcome, and return whether the webhook accepted it."""
    result = post(alert, dataset.config, attempts)
    if result is None:
        return False
    outcome: dict[str, Any] = {"delivered": True, "reason": ""}
    if not result.accepted:
        failures = alert.failures + 1
        outcome = {"delivered": False, "failures": failures, "reason": result.reason, "tried_at": now()}
        later = "later runs post it again" if failures < MAX_FAILURES else f"given up after {failures} runs"
        logger.warning(
            f"the webhook in {dataset.config.alerts.webhook} did not accept an alert ({result.reason}); {later}"
        )
    _add(alert, dataset.paths, outcome)
    return result.accepted


def post(alert: Alert, config: PipelineConfig, attempts: int = ATTEMPTS) -> PostResult | None:
    """Post an alert to the webhook as JSON.

    Args:
        alert: Alert to post.
        config: Configuration of the dataset. Its `alerts.webhook` names the environment variable with the URL, and
            `alerts.webhook_secret` the one with the secret that signs it.
        attempts: Number of attempts.

    Returns:
        The outcome of the last attempt; None without a webhook.
    """
    variable, secret_variable = config.alerts.webhook, config.alerts.webhook_secret
    if variable is None:
        return None
    url = os.environ.get(variable, "").strip()
    if not is_http_url(url):
        return PostResult(
            False,
            f"the environment variable {variable} of alerts.webhook contains no URL; set it to a URL that starts with "
            "http:// or https://",
        )
    secret = os.environ.get(secret_variable, "").strip() if secret_variable else None
    if secret == "":
        return PostResult(
            False,
            f"the environment variable {secret_variable} of alerts.webhook_secret is empty; set it to the secret that "
            "the receiver knows, because an alert without a signature is not sent",
        )
    body = json.dumps(_body(alert, config), default=str).encode()
    message_id = f"msg_{hash_json([config.dataset, alert.key])}"
    result = PostResult(False)
    for attempt in range(attempts):
        result = post_json(url, body, message_id, secret)
        if result.accepted:
            break
        if attempt + 1 < attempts:
            time.sleep(_PAUSE_SECONDS * 2**attempt)
    return result


def _body(alert: Alert, config: PipelineConfig) -> dict[str, Any]:
    # Chat programs display the key "text".
    body = {"text": f"{config.dataset}: {alert.message}", "dataset": config.dataset, **alert.record()}
    for internal in ("delivered", "subjects", "failures", "reason", "tried_at"):
        del body[internal]
    # JSON has no infinity.
    body["figures"] = {name: value if math.isfinite(value) else None for name, value in alert.figures.items()}
    return body
