"""Pages of the data server that are made when they are asked for, and the marks that people post to it."""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ae_pipeline.cli.error_pages import error_page, unknown_dataset
from ae_pipeline.cli.project import current_user
from ae_pipeline.common.errors import ConfigError, PipelineError
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

if TYPE_CHECKING:
    from ae_pipeline.reports.review import MarkRequest

_MAX_BODY = 16_384
"""Bytes of a posted mark."""

_FIELDS = {"kind": 10, "subject": 2_000, "state": 20, "day": 20, "entity": 1_000, "note": 500, "who": 100}
"""Fields of a posted mark, and their lengths at most, characters."""

_SERVERS = ("dagster", "mlflow")


@dataclass(frozen=True)
class DataPages:
    """Home page, data contracts and marks.

    Attributes:
        folder: Data folder.
        datasets: Datasets of the project, by name. Reports of others are listed too, but cannot be marked.
    """

    folder: Path
    datasets: Mapping[str, Dataset]

    @property
    def routes(self) -> list[Route]:
        """Routes of these pages. The guard has checked token, origin and type of each request before."""
        return [
            Route("/", self._home, methods=["GET"]),
            Route("/contract/{name}", self._contract, methods=["GET"]),
            Route("/mark/{name}", self._form, methods=["GET"]),
            Route("/mark/{name}", self._mark, methods=["POST"]),
        ]

    async def _home(self, _: Request) -> Response:
        return await run_in_threadpool(self._render_home)

    def _render_home(self) -> Response:
        from ae_pipeline.reports.served import home_page

        reports = self.folder / "reports"
        names_of_reports = [path.name for path in reports.iterdir() if path.is_dir()] if reports.is_dir() else []
        names = {name for name in names_of_reports if not name.startswith(".")} | self.datasets.keys()
        paths = {name: DatasetPaths(self.folder.resolve(), name) for name in names}
        paths |= {name: dataset.paths for name, dataset in self.datasets.items()}
        configs = {name: dataset.config for name, dataset in self.datasets.items()}
        # The addresses of this start: those in a written file would outlive it.
        addresses = {name: url.rstrip("/") for name in _SERVERS if (url := os.environ.get(_variable(name), ""))}
        return _page(home_page(paths, configs, addresses))

    async def _contract(self, request: Request) -> Response:
        from ae_pipeline.reports.served import contract_page

        try:
            text = await run_in_threadpool(contract_page, self._dataset(request))
        except (PipelineError, OSError) as error:  # such as an object store that does not answer
            return error_page(str(error), 503, request)
        if text is None:
            name = request.path_params["name"]
            raise HTTPException(404, f"{name!r} has no published table yet; `ae-pipeline run {name}` makes it")
        return _page(text)

    async def _form(self, request: Request) -> Response:
        from ae_pipeline.reports.served import mark_page

        query = request.query_params
        given = {name: query.get(name, "") for name in _FIELDS}
        back, nonce = query.get("back", ""), secrets.token_urlsafe(16)
        back = back if back.startswith("reports/") else ""
        try:
            asked = _asked({**given, "state": "real", "who": current_user()})
            text = await run_in_threadpool(mark_page, asked, back, self._dataset(request), nonce)
        except PipelineError as error:
            return error_page(str(error), 422, request)
        return _page(text, f"script-src 'nonce-{nonce}'; connect-src 'self'; ")

    async def _mark(self, request: Request) -> Response:
        from ae_pipeline.lifecycle.feedback import mark_and_show
        from ae_pipeline.reports.review import offer_after
        from ae_pipeline.reports.served import offer_json

        dataset = self._dataset(request)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BODY:
                raise HTTPException(413, f"a mark has at most {_MAX_BODY:,} bytes; shorten the note")
        try:
            content = json.loads(body)
        except ValueError:
            return JSONResponse({"message": "the body is no JSON"}, status_code=422)
        try:
            if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
                raise ConfigError("a mark is a JSON object of texts")
            asked = _asked({"who": current_user(), **{name: value for name, value in content.items() if value}})
            stored = await run_in_threadpool(mark_and_show, asked, dataset)
        except PipelineError as error:
            return JSONResponse({"message": str(error)}, status_code=422)
        offer = None
        with suppress(PipelineError):  # the mark is stored
            offer = await run_in_threadpool(offer_after, stored, dataset)
        rows = f", {pluralize(len(stored.rows), noun_of_rows(dataset.config))}" if stored.rows else ""
        return JSONResponse(
            {
                "message": f"Saved: {stored.state.text}{rows}. The report shows it when it is opened again.",
                "offer": offer_json(offer),
            }
        )

    def _dataset(self, request: Request) -> Dataset:
        dataset = self.datasets.get(request.path_params["name"])
        if dataset is None:
            raise unknown_dataset(request.path_params["name"], self.datasets)
        return dataset


def _asked(content: Mapping[str, str]) -> "MarkRequest":
    """Return what a person asks to mark.

    Raises:
        ConfigError: A field is missing, unknown or too long.
    """
    from ae_pipeline.monitoring.feedback import MarkKind, MarkState
    from ae_pipeline.monitoring.marks_summary import parse_choice
    from ae_pipeline.reports.review import MarkRequest

    for name, value in content.items():
        if name not in _FIELDS:
            raise ConfigError(f"a mark has no field {name!r}; its fields are {', '.join(_FIELDS)}")
        if len(value) > _FIELDS[name]:
            raise ConfigError(f"{name} has {len(value):,} characters; use at most {_FIELDS[name]:,}")
    if missing := [name for name in ("kind", "subject", "state") if not content.get(name)]:
        raise ConfigError(f"a mark needs {missing[0]}; add it")
    further = {name: value for name, value in content.items() if name not in {"kind", "state"}}
    return MarkRequest(
        kind=parse_choice(MarkKind, content["kind"]), state=parse_choice(MarkState, content["state"]), **further
    )


def _variable(name: str) -> str:
    return f"AE_PIPELINE_{name.upper()}_URL"


def _page(text: str, extra: str = "") -> Response:
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {extra}"
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})
