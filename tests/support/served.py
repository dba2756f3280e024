"""Served pages in a browser, as a user who has opened the printed address."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ae_pipeline.cli.servers import serve_folder
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.storage.dataset import Dataset
from tests.support.missing import CHROMIUM

TOKEN = "correct-horse-battery"


@contextmanager
def served_page(dataset: Dataset, tracker: Tracker | None = None, width: int = 380) -> Iterator[Any]:
    """Yield a page of a browser; its relative addresses are those of the data server, and `problems` its messages."""
    from playwright.sync_api import sync_playwright

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        serve_folder(dataset.paths.root, port, TOKEN, datasets={dataset.name: dataset}, tracker=tracker),
        sync_playwright() as driver,
    ):
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page: Any = chromium.new_page(base_url=f"http://127.0.0.1:{port}", viewport={"width": width, "height": 800})
        page.set_default_timeout(60_000)
        page.problems = []
        # A click within a sandboxed page is answered with 401 once, and then with the page.
        page.on("console", lambda message: None if "401" in message.text else page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        yield page
        chromium.close()


def serious(page: Any) -> list[str]:
    """Return the serious violations that axe reports of a page in its light and its dark theme."""
    from axe_playwright_python.sync_playwright import Axe

    # The policy of these pages forbids other scripts than their own.
    session = page.context.new_cdp_session(page)
    session.send("Page.setBypassCSP", {"enabled": True})
    page.reload()
    found = []
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        violations = [one for one in Axe().run(page).response["violations"] if one["impact"] in _IMPACTS]
        found += [f"{theme}: {one['id']}: {one['nodes'][0]['html'][:200]}" for one in violations]
    return found


def follow_by_keyboard(page: Any, text: str) -> None:
    """Follow the first link or button with a text by the keys Tab and Enter; its focus must be visible."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused, outline = page.evaluate(_FOCUS)
        if focused.strip() == text:
            assert outline != "none", f"{text!r} does not show that it has the focus"
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"no key reaches {text!r}")


_FOCUS = "() => [document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"


_IMPACTS = {"serious", "critical"}


class Versions(Tracker):
    """A model store in memory."""

    def __init__(self, versions: Sequence[TrackedVersion], serving: int) -> None:
        super().__init__(Path("nowhere"))
        self._versions, self._aliases = list(versions), {CHAMPION: serving}

    def versions(self, dataset: str) -> list[TrackedVersion]:
        """Return all versions."""
        return self._versions

    def version(self, dataset: str, alias: str) -> TrackedVersion | None:
        """Return the version with an alias."""
        return next((each for each in self._versions if each.version == self._aliases.get(alias)), None)

    def set_alias(self, dataset: str, alias: str, version: int | None) -> None:
        """Let an alias point to a version."""
        self._aliases[alias] = version or 0

    def tag_version(self, dataset: str, version: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        self._versions = [
            replace(each, tags={**each.tags, **tags}) if each.version == version else each for each in self._versions
        ]

    def facts_of_runs(self, dataset: str) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
        """Return no facts."""
        return {}
