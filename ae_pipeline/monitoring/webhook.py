"""Post a JSON text to a webhook within a deadline, and sign it.

The address is a secret: it appears in no message of this module, and the HTTP library logs nothing.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

DEADLINE_SECONDS = 15.0
"""Time for a whole post: name lookup, connection, request, redirects and answer."""

_MAX_REDIRECTS = 3

_KEPT = {307, 308}
"""Status codes of redirects that keep method and body. A browser answers the other ones with a GET without body."""


@dataclass(frozen=True)
class PostResult:
    """Outcome of a post.

    Attributes:
        accepted: Whether the server accepted the text: its last status was 200 to 299.
        reason: Why not; empty if it did.
    """

    accepted: bool
    reason: str = ""


def is_http_url(text: str) -> bool:
    """Return whether a text is an http or https URL with a host."""
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0 and text.isprintable()
    except ValueError:
        return False


def sign(body: bytes, secret: str, message_id: str, timestamp: int) -> dict[str, str]:
    """Return the headers that sign a body, after the specification Standard Webhooks.

    Args:
        body: Body of the request.
        secret: Shared secret. After the prefix `whsec_` it is read as base64.
        message_id: Identifier of the message, the same in each attempt.
        timestamp: Seconds since 1970.

    Raises:
        ValueError: The part after `whsec_` is not base64.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True) if secret.startswith("whsec_") else None
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.digest(key if key is not None else secret.encode(), signed, hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


def post_json(
    url: str, body: bytes, message_id: str, secret: str | None = None, deadline: float = DEADLINE_SECONDS
) -> PostResult:
    """Post a JSON text.

    Args:
        url: Address of the webhook.
        body: JSON text.
        message_id: Identifier of the message, the same in each attempt.
        secret: Shared secret that signs the request; None for a request without a signature.
        deadline: Seconds for the whole post.
    """
    headers = {"Content-Type": "application/json"}
    try:
        headers |= sign(body, secret, message_id, int(time.time())) if secret is not None else {}
    except ValueError:
        return PostResult(False, "the secret after whsec_ is not base64")
    results: list[PostResult] = []
    # A thread, because a name lookup cannot be cancelled, and because the caller may have an event loop of its own.
    thread = threading.Thread(
        target=lambda: results.append(asyncio.run(_post(url, body, headers, deadline))), daemon=True
    )
    thread.start()
    thread.join(deadline + 1)
    return results[0] if results else PostResult(False, f"no answer in {deadline:.0f} s")


async def _post(url: str, body: bytes, headers: dict[str, str], deadline: float) -> PostResult:
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # lower levels contain the address
    try:
        # The certificates of the machine, which may include a company's own.
        async with (
            asyncio.timeout(deadline),
            httpx.AsyncClient(verify=ssl.create_default_context(), timeout=deadline) as client,
        ):
            return await _send(client, url, body, headers)
    except TimeoutError:
        return PostResult(False, f"no answer in {deadline:.0f} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return PostResult(False, _reason(error))


async def _send(client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str]) -> PostResult:
    target = httpx.URL(url)
    for _ in range(_MAX_REDIRECTS + 1):
        # The body of the answer is never read, however long it is.
        async with client.stream("POST", target, content=body, headers=headers) as response:
            status, location = response.status_code, response.headers.get("location", "")
        if 200 <= status < 300:
            return PostResult(True)
        if status not in _KEPT:
            remedy = "; set the variable to the address that it redirects to" if 300 <= status < 400 else ""
            return PostResult(False, f"HTTP status {status}{remedy}")
        following = target.join(location)
        if following.scheme not in {"http", "https"} or (target.scheme, following.scheme) == ("https", "http"):
            return PostResult(False, f"HTTP status {status}; it redirects to an address without https")
        target = following
    return PostResult(False, f"more than {_MAX_REDIRECTS} redirects")


def _reason(error: BaseException) -> str:
    """Return why a request failed, without the text of the error: it may contain the secret URL."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its certificate is not valid"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason}"
        if isinstance(cause, socket.gaierror):
            return "its name is not known"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
