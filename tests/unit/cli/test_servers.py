"""The screens: where they are said to be, and what the server of the data folder gives to whom."""

import http.client
import socket
import tomllib
from pathlib import Path

import pytest

from ae_pipeline.cli.servers import address_lines, serve_folder
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.registry.store import Tracker

ADDRESSES = {"dagster": "http://127.0.0.1:3000", "mlflow": "http://127.0.0.1:5000", "data": "http://127.0.0.1:3001"}


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(data_folder=str(tmp_path / "data"), mlflow_folder=str(tmp_path / "mlruns"))


def report(workspace: Workspace, dataset: str) -> Path:
    page = workspace.paths(dataset).reports / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>fine</p>")
    return page


class TestPlaces:
    def test_with_nothing_made_it_says_how_to_make_something(self, workspace):
        lines = address_lines(ADDRESSES, workspace, ["flights"])
        assert lines[:2] == ["Dagster  http://127.0.0.1:3000", "MLflow   http://127.0.0.1:5000"]
        assert "There are no reports yet: `make run`" in lines[2]

    def test_what_was_made_is_named_with_its_page_and_graph(self, workspace):
        report(workspace, "shuttle")
        lines = address_lines(ADDRESSES, workspace, ["flights", "shuttle"])
        assert lines[0] == "Dagster  http://127.0.0.1:3000/locations/ae_pipeline/asset-groups/shuttle/lineage"
        assert lines[2] == "Report   http://127.0.0.1:3001/reports/shuttle/report.html"
        assert not any("flights" in line for line in lines)


class TestLinks:
    def test_a_file_is_found_where_a_folder_is_a_link(self, workspace, tmp_path):
        (tmp_path / "large disk").mkdir()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "reports").symlink_to(tmp_path / "large disk")
        assert workspace.file_url(report(workspace, "my data")) == f"{ADDRESSES['data']}/reports/my%20data/report.html"

    def test_a_server_elsewhere_is_linked_to_without_its_password(self, tmp_path):
        uri = "https://bob:secret@mlflow.corp:8443/ml/"
        workspace = Workspace(data_folder=str(tmp_path), mlflow_folder=str(tmp_path), tracking_uri=uri)
        assert workspace.model_version_url("flights", 3) == "https://mlflow.corp:8443/ml/#/models/flights/versions/3"

    def test_what_a_deployment_says_comes_first(self, workspace):
        told = workspace.model_copy(update={"mlflow_url": "https://models/", "dagster_url": "https://dagster/"})
        assert told.model_version_url("flights", 3) == "https://models/#/models/flights/versions/3"
        assert told.run_url("abc") == "https://dagster/runs/abc"

    @pytest.mark.parametrize(
        ("uri", "is_remote"),
        [(None, False), ("sqlite:////x.db", False), ("postgresql://u:p@h/db", False), ("http://host", True)],
    )
    def test_a_database_is_no_server_elsewhere(self, tmp_path, uri, is_remote):
        assert Tracker(tmp_path, uri).is_remote == is_remote


class TestDataServer:
    @pytest.fixture
    def ask(self, workspace):
        report(workspace, "flights")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            unused_port = probe.getsockname()[1]

        def ask(path: str, host: str = "127.0.0.1") -> http.client.HTTPResponse:
            asked = http.client.HTTPConnection("127.0.0.1", unused_port)
            asked.request("GET", path, headers={"Host": f"{host}:{unused_port}"})
            return asked.getresponse()

        with serve_folder(Path(workspace.data_folder), unused_port):
            yield ask

    def test_it_gives_a_page_that_can_read_nothing_else(self, ask):
        found = ask("/reports/flights/report.html")
        assert (found.status, found.read()) == (200, b"<p>fine</p>")
        policy = found.headers["Content-Security-Policy"].split()
        assert policy[0] == "sandbox"
        assert "allow-same-origin" not in policy
        assert found.headers["X-Content-Type-Options"] == "nosniff"

    def test_it_answers_to_the_name_of_this_machine_alone(self, ask):
        assert ask("/reports/flights/report.html", "localhost").status == 200
        assert ask("/reports/flights/report.html", "evil.example").status == 403
        assert ask("/reports/flights/report.html", "127.0.0.1.evil.example").status == 403

    def test_it_leaves_the_folder_to_nobody(self, ask):
        assert ask("/../mlruns/mlflow.db").status == 404
        assert ask("/%2e%2e/mlruns/mlflow.db").status == 404


def test_all_that_is_no_code_is_in_the_package():
    root = Path(__file__).parents[3]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["ae_pipeline"]
    package = root / "ae_pipeline"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    there = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert there - shipped == set()
    assert {path.suffix for path in there} >= {".j2", ".css", ".js", ".yaml"}
