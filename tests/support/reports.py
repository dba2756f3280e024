"""Publish and report a fitted dataset, and read the text of a page."""

import html.parser
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ae_pipeline.latents.publish import publish
from ae_pipeline.reports.build import Report, build_report
from ae_pipeline.storage.dataset import Dataset
from tests.support.sensors import Fitted

SCRIPT = "<script>alert(1)</script>"


def as_dataset(fitted: Fitted) -> Dataset:
    """Return the dataset with the configuration of its model."""
    return Dataset(fitted.bundle.config, fitted.paths)


def published(fitted: Fitted, days: Iterable[str]) -> None:
    """Publish days with version 3 of the model."""
    publish(list(days), as_dataset(fitted), fitted.bundle, 3, {})


def reported(fitted: Fitted, days: Iterable[str]) -> Report:
    """Build the report of days with version 3 of the model."""
    return build_report(list(days), as_dataset(fitted), fitted.bundle, 3, "run-of-mlflow")


def keep_copy(dataset: Dataset, name: str) -> Path:
    """Copy the files of a dataset beside its root, and return the folder of the copy."""
    return shutil.copytree(dataset.paths.root, dataset.paths.root.with_name(name))


def restore(dataset: Dataset, copy: Path) -> None:
    """Replace the files of a dataset by a copy. Their folder stays the same, because pages contain its path."""
    shutil.rmtree(dataset.paths.root)
    shutil.copytree(copy, dataset.paths.root)


class Text(html.parser.HTMLParser):
    """Tags of a page and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in {"script", "style"}:
            self.tags.append(f"/{tag}")


def speaks_of_rows(page: str) -> list[str]:
    """Return where a page or a message speaks of rows: not those of pixels, nor the option `--row` of a command."""
    attributes = re.findall(r'(?:aria-label|title|alt|placeholder|data-(?:noun|offer|description))="([^"]*)"', page)
    specs = re.findall(r'<script type="application/json" id="chart-[^"]*-spec">(.*?)</script>', page, re.DOTALL)
    charts = [text for spec in specs for text in _chart_texts(json.loads(spec))]
    shown = re.sub(r"at row \d+, column \d+|--row=", "", " | ".join([Text(page).text, *attributes, *charts]))
    return re.findall(r".{0,40}\brows?\b.{0,40}", shown, re.IGNORECASE)


def _chart_texts(spec: Any) -> Iterator[str]:
    """Yield what a chart shows: titles, names of fields without a title, and texts of its data."""
    match spec:
        case {"field": str(name), **channel} if "title" not in channel:
            yield name
        case {"title": str(title)}:
            yield title
    match spec:
        case dict():
            for key, value in spec.items():
                yield from _data_texts(value) if key == "datasets" else _chart_texts(value)
        case list():
            for value in spec:
                yield from _chart_texts(value)


def _data_texts(datasets: dict[str, list[dict[str, object]]]) -> Iterator[str]:
    for entries in datasets.values():
        yield from (str(value) for entry in entries for value in entry.values() if isinstance(value, str))
