"""Makes the screenshots of README and of the documentation again, from the flights that `make run` has brought up.

Run it after that, with Debian's package chromium: .venv/bin/python docs/screenshots.py
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

from ae_pipeline.cli.project import Project
from ae_pipeline.registry.names import CHAMPION

DOCS = Path(__file__).parent
DATASET, DAY = "flights", "2013-02-08"
"""The day is that of a blizzard."""

TOKEN = secrets.token_urlsafe()
"""Token of the servers."""


def main() -> int:
    """Starts the screens, and keeps what each shows."""
    program = str(Path(sys.executable).with_name("ae-pipeline"))
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no chromium; install it")
    workspace = Project.load(opens_instance=False).workspace
    served = workspace.tracker().version(DATASET, CHAMPION)
    if served is None:
        sys.exit(f"nothing serves for {DATASET!r} so far; `make run` trains a model")
    subprocess.run([program, "page", DATASET, DAY], check=True)  # noqa: S603 (our own program)
    with _screens(program) as (dagster, mlflow, data), sync_playwright() as driver:
        here = workspace.model_copy(update={"dagster_url": dagster, "mlflow_url": mlflow, "data_url": data})
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        graph = _page(browser, f"{dagster}/locations/ae_pipeline/asset-groups/{DATASET}/lineage", 2300, 560)
        _keep(graph, "asset_graph.png", {"x": 300, "y": 190, "width": 1950, "height": 290})  # without the menus
        asset = _page(browser, f"{dagster}/assets/{DATASET}/autoencoder?view=overview", 1500, 1000)
        asset.get_by_text("[Show Markdown]").nth(1).click()
        _keep(asset, "asset.png")
        run = _page(browser, here.mlflow_run_url(DATASET, served.run_id), 1500, 1000)
        run.get_by_role("button", name="Close", exact=False).first.click()  # an assistant that is not set up
        _keep(run, "mlflow.png")
        report = _page(browser, here.file_url(workspace.paths(DATASET).reports / "days" / f"{DAY}.html"), 1200, 1250)
        report.wait_for_selector(".chart svg")
        _keep(report, "day.png")
        for name, path, height in (
            ("home.png", "", 960),
            ("mark.png", f"mark/{DATASET}?kind=cause&subject=air_time&day=&back=reports/{DATASET}/report.html", 640),
            ("versions.png", f"versions/{DATASET}", 820),
            ("contract.png", f"contract/{DATASET}", 1000),
        ):
            _keep(_page(browser, f"{data}/{path}", 1200, height), name)
        column = _page(browser, f"{data}/explore/{DATASET}/column/dep_delay", 1200, 1150)
        _keep(column, "column.png")
        latents = _page(browser, f"{data}/explore/{DATASET}/latents", 1200, 900)
        _keep(latents, "latents.png")
        browser.close()
    return 0


@contextmanager
def _screens(program: str) -> Iterator[tuple[str, str, str]]:
    """Serves Dagster, MLflow and the data folder on free ports."""
    ports = [_free_port() for _ in range(3)]
    options = [f"{name}={port}" for name, port in zip(("--port", "--mlflow-port", "--data-port"), ports, strict=True)]
    environment = {**os.environ, "AE_PIPELINE_UI_TOKEN": TOKEN}
    screens = subprocess.Popen([program, "ui", *options], env=environment)  # noqa: S603 (our own program)
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for address in addresses:
            _wait_for(address)
        yield addresses[0], addresses[1], addresses[2]
    finally:
        screens.terminate()
        screens.wait(timeout=60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(address: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/?token={TOKEN}", timeout=10).close()  # noqa: S310 (our own server)
        except OSError:
            time.sleep(1)
        else:
            return
    sys.exit(f"nothing answers at {address}")


def _page(browser: Browser, address: str, width: int, height: int) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
    page.set_extra_http_headers({"Authorization": f"Bearer {TOKEN}"})
    page.goto(address)
    page.wait_for_timeout(10_000)  # both go on loading for as long as they are open
    return page


def _keep(page: Page, name: str, clip: FloatRect | None = None) -> None:
    page.wait_for_timeout(1500)
    page.screenshot(path=DOCS / name, clip=clip)


if __name__ == "__main__":
    sys.exit(main())
