"""Pages of the data server to explore a dataset, drawn when they are asked for."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ae_pipeline.cli.error_pages import error_page, unknown_dataset
from ae_pipeline.common.errors import PipelineError, PublicationError, StorageError, UnknownVersionError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.environment import environment_error

if TYPE_CHECKING:
    from ae_pipeline.registry.store import Tracker

SANDBOX = (
    "sandbox allow-scripts allow-downloads allow-popups; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data:"
)
"""A sandbox lets a page run its own scripts and reach nothing else. Vega compiles expressions, hence `unsafe-eval`."""

DAY_PAGE = re.compile(r"reports/([^/]+)/days/([0-9]{4}-[0-9]{2}-[0-9]{2})\.html")
"""Address of the page of a day: its file if it is stored, otherwise drawn."""

_NUMBER = "[0-9]{1,9}"
"""Number of a version in an address."""


@dataclass(frozen=True)
class ExplorePages:
    """Scores by day, columns, latents, single rows, and versions of the model.

    Attributes:
        datasets: Datasets of the project, by name.
        tracker: The model store; None without one, as in tests of the other pages.
    """

    datasets: Mapping[str, Dataset]
    tracker: "Tracker | None" = None
    _quick: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    _slow: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    @property
    def routes(self) -> list[Route]:
        """Routes of these pages."""
        return [
            Route("/explore/{name}", self._scores, methods=["GET"]),
            Route("/explore/{name}/column/{column:path}", self._column, methods=["GET"]),
            Route("/explore/{name}/latents", self._latents, methods=["GET"]),
            Route("/explore/{name}/row", self._row, methods=["GET"]),
            Route("/versions/{name}", self._versions, methods=["GET"]),
            Route("/versions/{name}/compare", self._compare, methods=["GET"]),
        ]

    async def _scores(self, request: Request) -> Response:
        def page(dataset: Dataset) -> str | None:
            from ae_pipeline.lifecycle.version_pages import version_marks
            from ae_pipeline.reports.explore import scores_page

            try:
                marks, note = version_marks(dataset, self.tracker) if self.tracker else [], ""
            except StorageError as error:
                marks, note = [], str(error)
            return scores_page(dataset, marks, note)

        return await self._answer(request, page)

    async def _versions(self, request: Request) -> Response:
        def page(dataset: Dataset) -> str | None:
            from ae_pipeline.lifecycle.version_pages import versions_page

            address = os.environ.get("AE_PIPELINE_MLFLOW_URL", "")
            return versions_page(dataset, self.tracker, address) if self.tracker else None

        return await self._answer(request, page)

    async def _compare(self, request: Request) -> Response:
        given = {name: request.query_params.get(name, "") for name in ("new", "old")}
        if not all(re.fullmatch(_NUMBER, given[name] or default) for name, default in (("new", ""), ("old", "1"))):
            return error_page("name two versions, such as ?new=3&old=2", 422, request)

        def page(dataset: Dataset) -> str | None:
            from ae_pipeline.lifecycle.version_pages import compare_page

            old = int(given["old"]) if given["old"] else None
            return compare_page(int(given["new"]), old, dataset, self.tracker) if self.tracker else None

        return await self._answer(request, page, self._slow)

    async def day(self, request: Request, name: str, day: str) -> Response:
        """Return the page of a day that is not stored as a file.

        Args:
            request: Request for the page.
            name: Name of the dataset.
            day: ISO date.
        """

        def page(dataset: Dataset) -> str | None:
            from ae_pipeline.lifecycle.publish import load_table_model
            from ae_pipeline.reports.day_pages import draw_day_page

            if self.tracker is None:
                return None
            version, bundle = load_table_model(dataset, self.tracker)
            return draw_day_page(day, dataset, bundle, version.version)

        return await self._answer(request, page, self._slow, name)

    async def _column(self, request: Request) -> Response:
        from ae_pipeline.reports.explore import column_page

        column = request.path_params["column"]
        missing = f"there is no page of a column {column!r}; the page Explore lists the columns"
        return await self._answer(request, lambda dataset: column_page(column, dataset), missing=missing)

    async def _latents(self, request: Request) -> Response:
        from ae_pipeline.reports.explore_latents import latents_page

        return await self._answer(request, latents_page)

    async def _row(self, request: Request) -> Response:
        row, day = (request.query_params.get(name, "") for name in ("id", "day"))

        def page(dataset: Dataset) -> str | None:
            from ae_pipeline.lifecycle.publish import load_table_model
            from ae_pipeline.reports.explore import row_page

            if self.tracker is None:
                return None
            bundle = load_table_model(dataset, self.tracker)[1]
            return row_page(row, day, dataset, bundle)

        missing = f"there is no row {row!r} on day {day!r}; name both, as the links of a report do"
        return await self._answer(request, page, missing=missing)

    async def _answer(
        self,
        request: Request,
        page: Callable[[Dataset], str | None],
        limiter: CapacityLimiter | None = None,
        name: str = "",
        missing: str | None = None,
    ) -> Response:
        """Return a page, made in a thread.

        Quick and slow pages are made one at a time each, so that many requests do not exhaust the memory. A request
        waits without a thread, so that the other pages of the server have theirs.

        Args:
            request: Request for the page.
            page: Function that makes the page; None if there is none.
            limiter: Limiter of the slow pages; by default that of the quick ones.
            name: Name of the dataset; by default that of the address.
            missing: Message if the function makes no page.
        """
        name = name or request.path_params["name"]
        dataset = self.datasets.get(name)
        if dataset is None:
            raise unknown_dataset(name, self.datasets)
        try:
            text = await to_thread.run_sync(page, dataset, limiter=limiter or self._quick)
        except (UnknownVersionError, PublicationError) as error:
            return error_page(str(error), 404, request)
        except (PipelineError, OSError) as error:
            return error_page(str(environment_error(error) or error), 503, request)
        if text is None:
            raise HTTPException(404, missing)
        return HTMLResponse(text, headers={"Content-Security-Policy": SANDBOX, "Cache-Control": "no-store"})
