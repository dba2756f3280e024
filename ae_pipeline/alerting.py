"""Alerts: kept beside the data, shown in the report, and posted to a webhook where one is configured."""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from ae_pipeline.config import PipelineConfig
from ae_pipeline.journal import add_line, lines_of, now
from ae_pipeline.storage import DatasetPaths

ATTEMPTS = 3
"""How often an alert is posted before it waits for the next one to be raised."""

_TIMEOUT_SECONDS, _PAUSE_SECONDS = 10.0, 1.0


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
        words: What happened, and what to do.
        run_id: Dagster run that found it.
        figures: What was measured.
        at: When, ISO 8601, UTC.
        delivered: Whether the webhook took it; None where none is configured.
    """

    event: AlertEvent
    key: str
    words: str
    run_id: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    at: str = field(default_factory=now)
    delivered: bool | None = None


def alerts_of(paths: DatasetPaths) -> list[Alert]:
    """Reads the alerts that were raised, the oldest first."""
    found = {line["key"]: Alert(**{**line, "event": AlertEvent(line["event"])}) for line in lines_of(paths.alerts)}
    return list(found.values())


def raise_alert(
    alert: Alert, config: PipelineConfig, paths: DatasetPaths, say: Callable[[str], None] = lambda _: None
) -> bool:
    """Keeps an alert and posts it, unless one of the same key was raised before.

    A webhook that cannot be reached stops nothing: the alert is kept as not delivered, and posted again with the next
    one.

    Args:
        alert: What happened.
        config: Names the webhook, if any.
        paths: The dataset's.
        say: Told what went wrong with the webhook.

    Returns:
        Whether it is new.
    """
    before = alerts_of(paths)
    if any(earlier.key == alert.key for earlier in before):
        return False
    for waiting in [earlier for earlier in before if earlier.delivered is False]:
        if post(waiting, config, say, attempts=1):
            add_line(paths.alerts, {**asdict(waiting), "delivered": True})
    add_line(paths.alerts, {**asdict(alert), "delivered": post(alert, config, say)})
    return True


def post(alert: Alert, config: PipelineConfig, say: Callable[[str], None], attempts: int = ATTEMPTS) -> bool | None:
    """Posts an alert as JSON; gives whether the webhook took it, None where none is configured."""
    variable = config.alerts.webhook
    if variable is None:
        return None
    address = os.environ.get(variable, "")
    if urllib.parse.urlparse(address).scheme not in {"http", "https"}:
        say(
            f"alerts.webhook names {variable}, which holds no address; set it to one that begins with http:// or https://"
        )
        return False
    # What chat programs show is called text.
    body = {"text": f"{config.dataset}: {alert.words}", "dataset": config.dataset, **asdict(alert)}
    del body["delivered"]
    request = urllib.request.Request(  # noqa: S310
        address, json.dumps(body, default=str).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    reason = ""
    for attempt in range(attempts):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
                return True
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 < attempts:
                time.sleep(_PAUSE_SECONDS * 2**attempt)
    # The address is a secret, and is not named.
    say(f"the webhook in {variable} did not take an alert ({reason}); it is posted again with the next one")
    return False
