"""The guard before each local server: who may read, who may change, and what browsers are told."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from ae_pipeline.cli.guard import TOKEN_VARIABLE, Access, Guard, access, token_of_environment
from ae_pipeline.common.errors import ConfigError

TOKEN = "correct-horse-battery"
ORIGIN = "http://127.0.0.1:3000"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
VISIT = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
FOREIGN = [
    "http://evil.example",
    "https://127.0.0.1:3000",
    "http://127.0.0.1:3001",
    "http://127.0.0.1",
    "http://localhost:3000",
    "http://127.0.0.1:3000.evil.example",
    "null",
    "",
]


async def _answer(request: Request) -> Response:
    return PlainTextResponse(f"{request.method} {request.url.path}", headers={"Access-Control-Allow-Origin": "*"})


async def _talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


APP = Starlette(
    routes=[
        WebSocketRoute("/graphql", _talk),
        Route("/{path:path}", _answer, methods=["GET", "POST", "PUT", "DELETE", "OPTIONS"]),
    ]
)
ALLOWED = access(TOKEN, 3000, "https://dagster.corp/ui")


def _client(allowed: Access = ALLOWED, base: str = ORIGIN) -> TestClient:
    return TestClient(Guard(APP, allowed), base_url=base, follow_redirects=False)


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A program that has nothing yet."""
    with _client() as client:
        yield client


@pytest.fixture
def user(client: TestClient) -> TestClient:
    """A browser that opened a printed address."""
    assert client.get(f"/?token={TOKEN}", headers=VISIT).status_code == 303
    return client


class TestToken:
    @pytest.mark.parametrize("path", ["/", "/graphql", "/reports/x/report.html", "/static/main.js", "/nowhere"])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
    def test_nothing_is_answered_without_it(self, client: TestClient, method: str, path: str) -> None:
        assert client.request(method, path).status_code == 401

    @pytest.mark.parametrize(
        "sent", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[1:]}"]
    )
    def test_a_wrong_one_is_refused(self, client: TestClient, sent: str) -> None:
        assert client.get("/", headers={"Authorization": sent}).status_code == 401
        assert client.get("/?token=wrong", headers=VISIT).status_code == 401

    def test_a_printed_address_becomes_a_cookie_without_the_token(self, client: TestClient) -> None:
        response = client.get(f"/runs/a%20b?x=1&token={TOKEN}&y=%26", headers=VISIT)
        assert (response.status_code, response.headers["Location"]) == (303, f"{ORIGIN}/runs/a%20b?x=1&y=%26")
        cookie = response.headers["Set-Cookie"]
        assert TOKEN not in cookie
        assert {part.strip() for part in cookie.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=strict"}
        assert client.get("/runs", headers=VISIT).text == "GET /runs"

    def test_a_printed_address_redirects_to_no_other_site(self, client: TestClient) -> None:
        response = client.get(f"{ORIGIN}//evil.example/?token={TOKEN}", headers=VISIT)
        assert response.headers["Location"] == f"{ORIGIN}//evil.example/"

    def test_a_program_reads_a_printed_address_at_once(self, client: TestClient) -> None:
        response = client.get(f"/runs?token={TOKEN}")
        assert (response.text, "Set-Cookie" in response.headers) == ("GET /runs", False)
        assert client.post(f"/graphql?token={TOKEN}", json={}).status_code == 401

    def test_a_program_sends_it_in_a_header(self, client: TestClient) -> None:
        assert client.post("/graphql", json={"query": "{version}"}, headers=BEARER).text == "POST /graphql"
        assert client.put("/api/artifact", content=b"\x00", headers=BEARER).status_code == 200

    def test_each_start_has_another_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
        tokens = {token_of_environment() for _ in range(20)}
        assert len(tokens) == 20
        assert min(map(len, tokens)) >= 43  # 256 bits

    @pytest.mark.parametrize(
        "chosen", ["short", "x" * 15, "with a space in it", "ümlaut-ümlaut-ümlaut", "a&token=b" * 3]
    )
    def test_a_weak_or_unusable_one_is_an_error(self, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
        monkeypatch.setenv(TOKEN_VARIABLE, chosen)
        with pytest.raises(ConfigError, match="use at least 16 letters, digits") as error:
            token_of_environment()
        assert chosen not in str(error.value)

    def test_cookies_of_two_starts_do_not_collide(self) -> None:
        first, second = (access(token, 3000, ORIGIN).cookie for token in ("a" * 20, "b" * 20))
        assert first[0] != second[0]
        assert first[1] != second[1]


class TestNames:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:3000", "localhost:3000", "LOCALHOST:3000", "[::1]:3000", "dagster.corp"]
    )
    def test_own_names_are_answered(self, client: TestClient, host: str) -> None:
        assert client.get("/", headers={"Host": host, **BEARER}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example:3000",
            "127.0.0.1",
            "127.0.0.1:3001",
            "localhost.:3000",
            "127.0.0.1:3000.evil.example",
            "127.0.0.1.evil.example:3000",
            "2130706433:3000",
            "0.0.0.0:3000",
            "127.0.0.1:3000@evil.example",
            "dagster.corp:3000",
            "xdagster.corp",
            "",
        ],
    )
    def test_other_names_are_refused_even_with_the_token(self, client: TestClient, host: str) -> None:
        assert client.get("/", headers={"Host": host, **BEARER}).status_code == 421

    def test_a_second_host_header_is_refused(self, client: TestClient) -> None:
        headers = [("Host", "127.0.0.1:3000"), ("Host", "evil.example"), *BEARER.items()]
        assert client.get("/", headers=headers).status_code == 421

    def test_behind_a_proxy_the_cookie_is_secure(self) -> None:
        with _client(base="https://dagster.corp") as client:
            response = client.get(f"/?token={TOKEN}", headers=VISIT)
        assert response.headers["Location"] == "https://dagster.corp/"
        assert "Secure" in response.headers["Set-Cookie"]

    @pytest.mark.parametrize(
        ("address", "host"),
        [
            ("https://user:pass@Host.Corp:443/x", "host.corp"),
            ("http://host.corp:80", "host.corp"),
            ("http://host.corp:8080/", "host.corp:8080"),
            ("http://[::2]:9", "[::2]:9"),
        ],
    )
    def test_the_name_of_a_configured_address(self, address: str, host: str) -> None:
        assert host in access(TOKEN, 3000, address).schemes


class TestOtherPages:
    @pytest.mark.parametrize("origin", FOREIGN)
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
    def test_a_foreign_origin_is_refused(self, user: TestClient, method: str, origin: str) -> None:
        for extra in ({}, BEARER):
            response = user.request(method, "/graphql", headers={"Origin": origin, **JSON, **extra})
            assert response.status_code == 403

    def test_the_own_origin_may_change_something_with_json(self, user: TestClient) -> None:
        assert user.post("/graphql", json={}, headers={"Origin": ORIGIN}).text == "POST /graphql"
        assert user.delete("/run", headers={"Origin": ORIGIN}).text == "DELETE /run"

    def test_a_cookie_without_origin_changes_nothing(self, user: TestClient) -> None:
        assert user.post("/graphql", json={}).status_code == 403
        assert user.delete("/run").status_code == 403

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/graphql", ""]
    )
    def test_a_body_that_a_form_can_send_is_refused(self, user: TestClient, kind: str) -> None:
        headers = {"Origin": ORIGIN, "Content-Type": kind}
        assert user.post("/graphql", content="{}", headers=headers).status_code == 415
        assert user.post("/graphql?query=mutation", headers={"Origin": ORIGIN}).status_code == 415
        assert user.post("/graphql", content="{}", headers={**BEARER, "Content-Type": kind}).status_code == 415

    @pytest.mark.parametrize("headers", [{}, {"Accept": "text/html"}, BEARER, {"Origin": ORIGIN}])
    def test_graphql_is_not_executed_by_get(self, user: TestClient, headers: dict[str, str]) -> None:
        for path in ("/graphql", "/graphql/", "/%67raphql"):
            assert user.get(f"{path}?query=mutation%7Bx%7D", headers=headers).status_code == 405
        assert user.get("/graphql").status_code == 200

    @pytest.mark.parametrize("site", ["cross-site", "same-site", "unheard-of"])
    @pytest.mark.parametrize(("mode", "target"), [("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe")])
    def test_a_foreign_page_embeds_nothing(self, user: TestClient, site: str, mode: str, target: str) -> None:
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": target}
        assert user.get("/", headers=headers).status_code == 403

    def test_a_link_on_another_site_opens_a_page(self, user: TestClient) -> None:
        headers = {"Sec-Fetch-Site": "cross-site", **VISIT}
        assert user.get("/runs", headers=headers).text == "GET /runs"
        assert user.post("/runs", headers={**headers, **JSON}).status_code == 403

    def test_a_click_without_cookie_looks_twice_and_no_more(self, client: TestClient) -> None:
        first = client.get("/runs", headers={"Sec-Fetch-Site": "cross-site", **VISIT})
        second = client.get("/runs", headers={"Sec-Fetch-Site": "same-origin", **VISIT})
        assert (first.status_code, second.status_code) == (401, 401)
        assert ('http-equiv="refresh"' in first.text, 'http-equiv="refresh"' in second.text) == (True, False)

    @pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
    def test_no_preflight_succeeds(self, user: TestClient, method: str) -> None:
        assert user.request(method, "/", headers={"Origin": ORIGIN, **BEARER}).status_code == 405

    @pytest.mark.parametrize("path", ["/logs/%2e%2e/%2e%2e/x", "/a/%2e%2e", "/a%00b", "/a%0d%0ab", "/a%5c..%5cb"])
    def test_odd_paths_are_refused(self, user: TestClient, path: str) -> None:
        assert user.get(path).status_code == 400
        assert user.get("/a..b/...").status_code == 200


class TestWebsockets:
    def _say(self, client: TestClient, headers: dict[str, str]) -> str:
        with client.websocket_connect(f"ws{ORIGIN[4:]}/graphql", headers=headers) as socket:
            return socket.receive_text()

    def test_the_own_page_and_programs_may_open_one(self, user: TestClient) -> None:
        assert self._say(user, {"Origin": ORIGIN}) == "hello"
        user.cookies.clear()
        assert self._say(user, BEARER) == "hello"

    @pytest.mark.parametrize(
        "headers", [{}, *({"Origin": origin} for origin in FOREIGN), {"Host": "evil.example:3000"}]
    )
    def test_others_may_not(self, user: TestClient, headers: dict[str, str]) -> None:
        with pytest.raises(WebSocketDisconnect):
            self._say(user, headers)

    def test_none_opens_without_the_token(self, client: TestClient) -> None:
        with pytest.raises(WebSocketDisconnect):
            self._say(client, {"Origin": ORIGIN})


class TestHeaders:
    def _headers(self, allowed: Access) -> Any:
        with _client(allowed) as client:
            return client.get("/", headers=BEARER).headers

    def test_each_answer_has_them(self, client: TestClient) -> None:
        for headers in (self._headers(ALLOWED), client.get("/").headers):
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "same-origin"
            assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"

    def test_the_permission_of_an_app_to_read_it_is_removed(self, client: TestClient) -> None:
        assert not [name for name in self._headers(ALLOWED) if name.startswith("access-control")]

    def test_a_policy_and_own_frames_can_be_allowed(self) -> None:
        headers = self._headers(access(TOKEN, 3000, ORIGIN, "default-src 'self'", may_frame_itself=True))
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
        assert "default-src 'self'" in headers["Content-Security-Policy"]
