"""Makes the screenshots of the report again, from the flights that `make run` has brought up.

Run it after that, with Debian's package chromium: .venv/bin/python docs/screenshots.py
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
REPORTS = DOCS.parent / "data" / "reports" / "flights"
PAGES = {"day.png": REPORTS / "days" / "2013-02-08.html"}
"""The day is that of a blizzard: `ae-pipeline page flights 2013-02-08` makes its page."""


def main() -> int:
    """Opens each page and keeps what stands at its top."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if missing := [page for page in PAGES.values() if not page.exists()]:
        sys.exit(f"{missing[0]} is not there; `make run` and `ae-pipeline page flights 2013-02-08` make it")
    if chromium is None:
        sys.exit("there is no chromium; install it")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, path in PAGES.items():
            page = browser.new_page(viewport={"width": 1200, "height": 1250}, color_scheme="light")
            page.goto(path.as_uri())
            page.wait_for_selector(".chart svg")
            page.wait_for_timeout(500)
            page.screenshot(path=DOCS / name)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
