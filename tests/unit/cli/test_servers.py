"""The local servers: printed addresses, links to them, and access to the files of the data folder."""

import http.client
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from ae_pipeline.cli.servers import address_lines, serve_folder
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.registry.store import Tracker

ADDRESSES = {"dagster": "http://127.0.0.1:3000", "mlflow": "http://127.0.0.1:5000", "data": "http://127.0.0.1:3001"}


class Get(Protocol):
    """Send a GET request to the data server, and return its response."""

    def __call__(self, path: str, host: str = ...) -> http.client.HTTPResponse: ...


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
        lines = address_lines(ADDRESSES, workspace, ["flights"])
        assert lines[:2] == ["Dagster  http://127.0.0.1:3000", "MLflow   http://127.0.0.1:5000"]
        assert "There are no reports yet: `make run`" in lines[2]

    def test_a_dataset_with_a_report_has_links_to_page_and_graph(self, workspace: Workspace) -> None:
        write_report(workspace, "shuttle")
        lines = address_lines(ADDRESSES, workspace, ["flights", "shuttle"])
        assert lines[0] == "Dagster  http://127.0.0.1:3000/locations/ae_pipeline/asset-groups/shuttle/lineage"
        assert lines[2] == "Report   http://127.0.0.1:3001/reports/shuttle/report.html"
        assert not any("flights" in line for line in lines)


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

        def get(path: str, host: str = "127.0.0.1") -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", unused_port)
            connection.request("GET", path, headers={"Host": f"{host}:{unused_port}"})
            return connection.getresponse()

        with serve_folder(Path(workspace.data_folder), unused_port):
            yield get

    def test_a_page_is_served_in_a_sandbox(self, get: Get) -> None:
        response = get("/reports/flights/report.html")
        assert (response.status, response.read()) == (200, b"<p>fine</p>")
        policy = response.headers["Content-Security-Policy"].split()
        assert policy[0] == "sandbox"
        assert "allow-same-origin" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    def test_only_requests_to_local_host_names_are_answered(self, get: Get) -> None:
        assert get("/reports/flights/report.html", "localhost").status == 200
        assert get("/reports/flights/report.html", "evil.example").status == 403
        assert get("/reports/flights/report.html", "127.0.0.1.evil.example").status == 403

    def test_files_outside_the_folder_are_not_served(self, get: Get) -> None:
        assert get("/../mlruns/mlflow.db").status == 404
        assert get("/%2e%2e/mlruns/mlflow.db").status == 404


def test_the_package_contains_all_data_files() -> None:
    root = Path(__file__).parents[3]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["ae_pipeline"]
    package = root / "ae_pipeline"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    data_files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert data_files - shipped == set()
    assert {path.suffix for path in data_files} >= {".j2", ".css", ".js", ".yaml"}
