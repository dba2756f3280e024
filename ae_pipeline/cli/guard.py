"""Middleware that protects a local web server from pages of other sites and from other users of the machine.

Every request needs the token of this start. A browser gets it once, with the printed address, and keeps a cookie.
Programs send `Authorization: Bearer TOKEN`. Host and origin are checked first, so that a page of another site can
neither use the cookie nor reach the server under a name of its own (DNS rebinding).
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ae_pipeline.common.errors import ConfigError

TOKEN_VARIABLE = "AE_PIPELINE_UI_TOKEN"  # noqa: S105
"""Environment variable with the token. Without it, each start makes a new one."""

_MIN_TOKEN = 16
"""Minimum length of a chosen token, characters."""

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SAFE = ("GET", "HEAD")
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")


def token_of_environment() -> str:
    """Return the token that the environment sets, or a new random one.

    Raises:
        ConfigError: The token of the environment is too short, or has characters that a header or an address cannot
            hold.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        return secrets.token_urlsafe(32)
    if len(token) < _MIN_TOKEN or not token.isascii() or not all(each.isalnum() or each in "-._~" for each in token):
        raise ConfigError(
            f"{TOKEN_VARIABLE} has {len(token)} characters; use at least {_MIN_TOKEN} letters, digits or -._~, or "
            "unset it, so that each start makes a token of its own"
        )
    return token


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use a server.

    Attributes:
        token: Token that each request needs.
        schemes: Names under which the server is reached, as in the Host header, with the scheme of each.
        policy: Content security policy that is added to the server's own.
        may_frame_itself: Whether pages of the server may show other pages of it in a frame.
    """

    token: str
    schemes: Mapping[str, str]
    policy: str = ""
    may_frame_itself: bool = False

    @property
    def cookie(self) -> tuple[str, str]:
        """Name and value of the cookie. Neither says what the token is, and each token has a name of its own."""
        digest = hmac.digest(self.token.encode(), b"cookie", hashlib.sha256).hex()
        return f"ae_pipeline_{digest[:8]}", digest[8:]


def access(token: str, port: int, address: str, policy: str = "", *, may_frame_itself: bool = False) -> Access:
    """Return who may use the server at a port of 127.0.0.1.

    Args:
        token: Token that each request needs.
        port: Port of the server.
        address: Address that users open. It differs from the port's behind a reverse proxy.
        policy: Content security policy that is added to the server's own.
        may_frame_itself: Whether pages of the server may show other pages of it in a frame.
    """
    schemes = {f"{name}:{port}": "http" for name in _LOOPBACK}
    if port == _DEFAULT_PORTS["http"]:
        schemes |= dict.fromkeys(_LOOPBACK, "http")
    url = urlsplit(address)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    if host:
        is_default = url.port in {None, _DEFAULT_PORTS.get(url.scheme)}
        schemes[host if is_default else f"{host}:{url.port}"] = url.scheme
    return Access(token=token, schemes=schemes, policy=policy, may_frame_itself=may_frame_itself)


class Guard:
    """ASGI middleware that lets only requests of the user through to an app."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the app."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = self._refuse(connection)
        if scope["type"] == "websocket":
            await (WebSocketClose(1008) if refusal else self._app)(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), self._access.may_frame_itself and not refusal)
            await send(message)

        await (refusal or self._app)(scope, receive, send_guarded)

    def _refuse(self, connection: HTTPConnection) -> Response | None:
        """Return why a request is refused, or None if the app may answer it."""
        headers, method = connection.headers, connection.scope.get("method", "GET")
        if refusal := self._refuse_origin(connection.scope, headers, method):
            return refusal
        names = connection.scope["path"].split("/")
        if ".." in names or any(ord(each) < 32 or each in "\\\x7f" for each in connection.scope["path"]):
            return _refused(400, "the path of the address contains .., \\ or a control character")
        is_safe_http = connection.scope["type"] == "http" and method in _SAFE
        has_token = _is(headers.get("authorization", ""), f"Bearer {self._access.token}")
        if is_safe_http and _is(connection.query_params.get("token", ""), self._access.token):
            if "text/html" in headers.get("accept", ""):
                return self._log_in(connection)
            has_token = True  # a program that fetches a printed address
        name, value = self._access.cookie
        if not has_token and not _is(connection.cookies.get(name, ""), value):
            return _without_token(connection, method)
        is_graphql = connection.scope["path"].rstrip("/").endswith("/graphql")
        if is_graphql and method in _SAFE and "query" in connection.query_params:
            return _refused(405, "GraphQL is answered by POST only")
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if method in _UNSAFE and (is_graphql or not has_token):
            if not has_token and "origin" not in headers:
                return _refused(
                    403, "a change with the cookie needs the header Origin; programs send the token instead"
                )
            if (has_body or method == "POST") and not _is_json(headers):
                return _refused(415, "the body must be JSON, with the header Content-Type: application/json")
        if connection.scope["type"] == "websocket" and not has_token and "origin" not in headers:
            return _refused(403, "a websocket with the cookie needs the header Origin")
        return None

    def _refuse_origin(self, scope: Scope, headers: Headers, method: str) -> Response | None:
        hosts = headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if host not in self._access.schemes:
            return _refused(
                421,
                f"this server has the names {', '.join(self._access.schemes)} only; behind a reverse proxy, set "
                "AE_PIPELINE_DAGSTER_URL, AE_PIPELINE_MLFLOW_URL and AE_PIPELINE_DATA_URL to its addresses",
            )
        if method not in (*_SAFE, *_UNSAFE):
            return _refused(405, "other methods than GET, HEAD, POST, PUT, PATCH and DELETE are not answered")
        origins = headers.getlist("origin")
        if origins and origins != [f"{self._access.schemes[host]}://{host}"]:
            return _refused(403, "the request comes from a page of another site")
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not _is_visit(
            scope, headers, method
        ):
            return _refused(403, "the request comes from a page of another site")
        return None

    def _log_in(self, connection: HTTPConnection) -> Response:
        """Exchange the token of a printed address for the cookie."""
        host = connection.headers["host"].lower()
        scheme = self._access.schemes[host]
        pairs = parse_qsl(connection.url.query, keep_blank_values=True)
        query = urlencode([pair for pair in pairs if pair[0] != "token"])
        address = f"{scheme}://{host}{quote(connection.scope['path'])}{'?' + query if query else ''}"
        response = RedirectResponse(address, status_code=303)
        name, value = self._access.cookie
        response.set_cookie(name, value, httponly=True, samesite="strict", secure=scheme == "https")
        return response

    def _add_headers(self, headers: MutableHeaders, may_be_framed: bool) -> None:
        for name in [name for name in headers if name.startswith("access-control-")]:
            del headers[name]
        ancestors = "'self'" if may_be_framed else "'none'"
        policy = f"frame-ancestors {ancestors}; base-uri 'self'; form-action 'self'; object-src 'none'"
        headers.append("Content-Security-Policy", "; ".join(filter(None, [policy, self._access.policy])))
        headers["X-Frame-Options"] = "SAMEORIGIN" if may_be_framed else "DENY"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "same-origin"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"


def _is(sent: str, expected: str) -> bool:
    return hmac.compare_digest(sent.encode(errors="replace"), expected.encode())


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _is_visit(scope: Scope, headers: Headers, method: str) -> bool:
    """Return whether a browser opens the address as a page of its own, for example after a click on a link."""
    mode, target = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return scope["type"] == "http" and method in _SAFE and (mode, target) == ("navigate", "document")


def _refused(status: int, reason: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return PlainTextResponse(f"{reason}\n", status_code=status, headers=headers)


def _without_token(connection: HTTPConnection, method: str) -> Response:
    message = "this server answers only requests with its token; open the address that `ae-pipeline ui` printed"
    if not _is_visit(connection.scope, connection.headers, method):
        return _refused(401, f"{message}, or send the header Authorization: Bearer TOKEN")
    # After a click on another site, or in the sandbox of a report, a browser sends the cookie only at the second look.
    is_foreign = connection.headers.get("sec-fetch-site") not in {"none", "same-origin"}
    refresh = '<meta http-equiv="refresh" content="0">' if is_foreign else ""
    icon = '<link rel=icon href="data:,">'  # otherwise a browser asks for one, and its console shows an error
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{icon}{refresh}<title>Token needed</title>"
    policy = "default-src 'none'; img-src data:"
    return HTMLResponse(f"{head}<p>{escape(message)}", status_code=401, headers={"Content-Security-Policy": policy})
