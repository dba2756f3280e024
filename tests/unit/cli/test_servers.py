"""The local servers: printed addresses, links to them, and access to the files of the data folder."""

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from ae_pipeline.cli.servers import _environment, address_lines, serve_folder
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.project import find_project

ADDRESSES = {"dagster": "http://127.0.0.1:3000", "mlflow": "http://127.0.0.1:5000", "data": "http://127.0.0.1:3001"}
TOKEN = "correct-horse-battery"


class Get(Protocol):
    """Send a request to the data server, and return its response."""

    def __call__(
        self, path: str, host: str = ..., method: str = ..., headers: Mapping[str, str] | None = ...
    ) -> http.client.HTTPResponse: ...


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(data_folder=str(tmp_path / "data"), mlflow_folder=str(tmp_path / "mlruns"))


def write_report(workspace: Workspace, dataset: str) -> Path:
    page = workspace.paths(dataset).reports / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>fine</p>")
    return page


class TestAddressLines:
    def test_without_reports_they_say_how_to_make_one(self, workspace: Workspace) -> None:
        lines = address_lines(ADDRESSES, workspace, ["flights"], TOKEN)
        assert lines[:3] == [
            f"Home     http://127.0.0.1:3001/?token={TOKEN}",
            f"Dagster  http://127.0.0.1:3000/?token={TOKEN}",
            f"MLflow   http://127.0.0.1:5000/?token={TOKEN}",
        ]
        assert "There are no reports yet: `ae-pipeline run DATASET`" in lines[3]

    def test_a_dataset_with_a_report_has_links_to_page_and_graph(self, workspace: Workspace) -> None:
        write_report(workspace, "shuttle")
        lines = address_lines(ADDRESSES, workspace, ["flights", "shuttle"], TOKEN, lambda name: f"#/{name}/runs")
        assert lines[2] == f"MLflow   http://127.0.0.1:5000/?token={TOKEN}#/shuttle/runs"
        graph = "http://127.0.0.1:3000/locations/ae_pipeline/asset-groups/shuttle/lineage"
        assert lines[1] == f"Dagster  {graph}?token={TOKEN}"
        assert lines[3] == f"Report   http://127.0.0.1:3001/reports/shuttle/report.html?token={TOKEN}"
        assert not any("flights" in line for line in lines)

    def test_a_tracking_server_elsewhere_does_not_get_the_token(self, workspace: Workspace) -> None:
        remote = workspace.model_copy(update={"tracking_uri": "https://mlflow.corp"})
        lines = address_lines({**ADDRESSES, "mlflow": "https://mlflow.corp"}, remote, [], TOKEN)
        assert lines[2] == "MLflow   https://mlflow.corp"


@pytest.mark.slow
def test_a_server_and_its_children_end_with_the_process_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(os.getpgrp(), *sys.argv[1:], __name__, flush=True)\n"
        "time.sleep(600)\n"
    )
    start = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'ae_pipeline.cli.server_process', str(os.getpid()), 'served', 'port']\n"
        "subprocess.Popen(command, process_group=0)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])}
    command = [sys.executable, "-c", start]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        group, *arguments = parent.stdout.readline().split()
        assert arguments == ["port", "__main__"]
        parent.kill()
        # All three hold the other end of the pipe, which is closed when the last of them has ended.
        try:
            assert select.select([parent.stdout], [], [], 60)[0]
            assert parent.stdout.read() == ""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(int(group), signal.SIGKILL)


class TestLinks:
    def test_a_link_to_a_file_in_a_symlinked_folder_works(self, workspace: Workspace, tmp_path: Path) -> None:
        (tmp_path / "large disk").mkdir()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "reports").symlink_to(tmp_path / "large disk")
        page = write_report(workspace, "my data")
        assert workspace.file_url(page) == f"{ADDRESSES['data']}/reports/my%20data/report.html"

    def test_a_link_to_a_remote_server_has_no_password(self, tmp_path: Path) -> None:
        uri = "https://bob:secret@mlflow.corp:8443/ml/"
        workspace = Workspace(data_folder=str(tmp_path), mlflow_folder=str(tmp_path), tracking_uri=uri)
        assert workspace.model_version_url("flights", 3) == "https://mlflow.corp:8443/ml/#/models/flights/versions/3"

    def test_configured_addresses_come_first(self, workspace: Workspace) -> None:
        deployed = workspace.model_copy(update={"mlflow_url": "https://models/", "dagster_url": "https://dagster/"})
        assert deployed.model_version_url("flights", 3) == "https://models/#/models/flights/versions/3"
        assert deployed.run_url("abc") == "https://dagster/runs/abc"

    @pytest.mark.parametrize(
        ("uri", "is_remote"),
        [(None, False), ("sqlite:////x.db", False), ("postgresql://u:p@h/db", False), ("http://host", True)],
    )
    def test_a_database_is_not_a_remote_server(self, tmp_path: Path, uri: str | None, is_remote: bool) -> None:
        assert Tracker(tmp_path, uri).is_remote == is_remote


class TestDataServer:
    @pytest.fixture
    def get(self, workspace: Workspace) -> Iterator[Get]:
        write_report(workspace, "flights")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            unused_port = probe.getsockname()[1]

        def get(
            path: str, host: str = "127.0.0.1", method: str = "GET", headers: Mapping[str, str] | None = None
        ) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", unused_port, timeout=10)
            all_headers = {"Host": f"{host}:{unused_port}", "Authorization": f"Bearer {TOKEN}", **(headers or {})}
            connection.request(method, path, headers=all_headers)
            return connection.getresponse()

        with serve_folder(Path(workspace.data_folder), unused_port, TOKEN):
            yield get

    @pytest.fixture
    def reports(self, workspace: Workspace) -> Path:
        return workspace.paths("flights").reports

    def test_a_page_is_served_in_a_sandbox(self, get: Get) -> None:
        response = get("/reports/flights/report.html")
        assert (response.status, response.read()) == (200, b"<p>fine</p>")
        policies = response.headers.get_all("Content-Security-Policy") or []
        assert policies[0].startswith("sandbox allow-scripts")
        assert "allow-same-origin" not in policies[0]
        assert "default-src 'none'" in policies[0]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"

    def test_only_requests_with_the_token_to_local_names_are_answered(self, get: Get) -> None:
        assert get("/reports/flights/report.html", "localhost").status == 200
        assert get("/reports/flights/report.html", "evil.example").status == 421
        assert get("/reports/flights/report.html", "127.0.0.1.evil.example").status == 421
        assert get("/reports/flights/report.html", headers={"Authorization": ""}).status == 401

    @pytest.mark.parametrize(
        "path",
        [
            "/../mlruns/mlflow.db",
            "/%2e%2e/mlruns/mlflow.db",
            "/reports/../../mlruns/mlflow.db",
            "/reports/%2e%2e%2f%2e%2e%2fmlruns/mlflow.db",
            "/reports/..%5c..%5cmlruns",
            "//etc/passwd",
            "/reports//etc/passwd",
            "/%2fetc/passwd",
            "/reports/flights/%00",
            "/reports/flights/report.html%00.png",
            "/reports/flights/report.html/",
            "/reports/flights/" + "a" * 5_000,
            "/reports/" + "a/" * 3_000,
            "/reports/flights/%ff%fe",
            "/reports/flights/%ed%a0%80.html",
        ],
    )
    def test_an_odd_path_finds_nothing(self, get: Get, workspace: Workspace, path: str) -> None:
        store = Path(workspace.mlflow_folder)
        store.mkdir()
        (store / "mlflow.db").write_bytes(b"runs")
        assert get(path).status in {400, 404}
        assert get("/reports/flights/report.html").status == 200

    def test_links_are_not_followed(self, get: Get, reports: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret.json"
        secret.write_text("{}")
        (reports / "link.json").symlink_to(secret)
        (reports / "inner.html").symlink_to(reports / "report.html")
        (reports / "days").symlink_to(tmp_path)
        (reports / "loop.html").symlink_to("loop.html")
        for name in ("link.json", "inner.html", "days/secret.json", "days/", "loop.html"):
            assert get(f"/reports/flights/{name}").status == 404
        assert get("/reports/flights/").read().count(b"<li>") == 1

    def test_special_files_are_not_opened(self, get: Get, reports: Path) -> None:
        os.mkfifo(reports / "fifo.json")
        with socket.socket(socket.AF_UNIX) as unix:
            folder = os.open(reports, os.O_RDONLY)
            unix.bind(f"/proc/self/fd/{folder}/socket.json")
            os.close(folder)
        for name in ("fifo.json", "socket.json"):
            assert get(f"/reports/flights/{name}").status == 404
        assert b"json" not in get("/reports/flights/").read()

    def test_only_what_pages_link_to_is_served(self, get: Get, workspace: Workspace, reports: Path) -> None:
        data = Path(workspace.data_folder)
        internal = (
            "landing/flights/a.json",
            "staging/flights/ledger.json",
            "history/flights.json",
            "raw/flights/d.parquet",
        )
        hidden = ("reports/flights/.a.json", "reports/.b/a.json", "reports/flights/report.context.json")
        other = ("reports/flights/unfinished.json", "reports/flights/script.js", "reports/flights/notes", "top.json")
        for name in (*internal, *hidden, *other, "features/flights/2024-01-01.parquet"):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_bytes(b"{}")
            assert get(f"/{name}").status == (200 if name.startswith("features") else 404), name
        for folder in ("features/", "features/flights/", "landing/", "history/flights/", "reports/.b/", "mlruns/"):
            assert get(f"/{folder}").status == 404
        home = get("/").read().decode()
        assert '<a href="reports/flights/report.html">flights</a>' in home
        assert "features" not in home
        assert get("/reports/").read().count(b"<li>") == 1
        assert get("/reports/flights/").read().count(b"<li>") == 1

    def test_names_are_escaped_in_lists(self, get: Get, reports: Path) -> None:
        (reports / '<img src=x onerror="alert(1)">.html').write_text("")
        (reports / "javascript:alert(1).html").write_text("")
        text = get("/reports/flights/").read().decode()
        assert "<img" not in text
        assert 'href="javascript:' not in text
        assert "&lt;img" in text

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a.json", "application/json"),
            ("a.parquet", "application/vnd.apache.parquet"),
            ("a.png", "image/png"),
            ("a.html", "text/html; charset=utf-8"),
        ],
    )
    def test_types_are_declared(self, get: Get, reports: Path, name: str, kind: str) -> None:
        (reports / name).write_text("<script>alert(1)</script>")
        assert get(f"/reports/flights/{name}").headers["Content-Type"] == kind

    @pytest.mark.parametrize(
        ("asked", "status", "body"),
        [
            ("bytes=0-2", 206, b"<p>"),
            ("bytes=-4", 206, b"</p>"),
            ("bytes=3-", 206, b"fine</p>"),
            ("bytes=50-60", 416, None),
            ("bytes=abc", 400, None),
            ("bytes=5-1", 400, None),
            ("bytes=" + ",".join(f"{i}-{i}" for i in range(2_000)), None, None),
            ("bytes=" + ",".join(["0-"] * 5_000), None, None),
        ],
    )
    def test_parts_of_a_file(self, get: Get, asked: str, status: int | None, body: bytes | None) -> None:
        response = get("/reports/flights/report.html", headers={"Range": asked})
        content = response.read()
        assert len(content) < 4_096
        assert response.status == status if status else response.status < 500
        assert body is None or content == body

    def test_head_has_no_body(self, get: Get) -> None:
        response = get("/reports/flights/report.html", method="HEAD")
        assert (response.status, response.headers["Content-Length"], response.read()) == (200, "11", b"")

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "MKCOL"])
    def test_nothing_can_be_changed(self, get: Get, reports: Path, method: str) -> None:
        assert get("/reports/flights/report.html", method=method).status == 405
        assert (reports / "report.html").read_text() == "<p>fine</p>"

    def test_a_folder_of_reports_elsewhere_is_served(self, tmp_path: Path, get: Get, workspace: Workspace) -> None:
        reports = Path(workspace.data_folder) / "reports"
        reports.rename(tmp_path / "large disk")
        reports.symlink_to(tmp_path / "large disk")
        assert get("/reports/flights/report.html").status == 200


def test_the_package_contains_all_data_files() -> None:
    root = Path(__file__).parents[3]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["ae_pipeline"]
    package = root / "ae_pipeline"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    data_files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert data_files - shipped == set()
    assert {path.suffix for path in data_files} >= {".j2", ".css", ".js", ".yaml"}


def test_servers_get_the_address_of_the_data_and_the_path_of_the_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AE_PIPELINE_DATA", "s3://bucket/shop/")
    monkeypatch.setenv("AE_PIPELINE_SCRATCH", "copies")
    environment = _environment(find_project())
    assert environment["AE_PIPELINE_DATA"] == "s3://bucket/shop"
    assert environment["AE_PIPELINE_SCRATCH"] == str(tmp_path / "copies")
    assert Path(environment["AE_PIPELINE_MLRUNS"]).is_absolute()
