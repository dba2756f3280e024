"""Web server of the data folder: reports, the features that their pages link to, and marks as Parquet."""

import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ae_pipeline.cli.data_pages import DataPages
from ae_pipeline.cli.error_pages import http_error_page
from ae_pipeline.cli.explore_pages import DAY_PAGE, SANDBOX, ExplorePages
from ae_pipeline.common.errors import PipelineError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import refresh

if TYPE_CHECKING:
    from ae_pipeline.registry.store import Tracker

logger = logging.getLogger(__name__)

_FOLDERS = {"reports": True, "features": False, "feedback": False}
"""Folders that are served, and whether their content is listed."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
}
"""Kinds of files that are served. A browser downloads Parquet, and never guesses a type."""

_INTERNAL = (".context.json", "unfinished.json")
"""Ends of the names of files that only the pipeline reads."""

_ICON = '<link rel=icon href="data:,">'
"""Without it, a browser asks for an icon in vain."""

_REFRESH_SECONDS = 2.0
"""Age up to which a page shows what this machine has, without a look at the object store."""

_MAX_LISTED = 5_000
"""Maximum number of entries of a folder that a list shows."""


def data_app(
    folder: Path, datasets: Mapping[str, Dataset] = MappingProxyType({}), tracker: "Tracker | None" = None
) -> Starlette:
    """Return the app that serves a data folder, with a home page, and takes marks.

    Args:
        folder: Data folder. It and its folders `reports` and `features` may be links; links below are not followed.
        datasets: Datasets of the project, by name; what they report can be marked and explored.
        tracker: The model store; None without one.
    """
    explore = ExplorePages(datasets, tracker)

    async def answer(request: Request) -> Response:
        path = request.path_params["path"]
        try:
            return await run_in_threadpool(_answer, folder, path)
        except HTTPException:
            if (asked := DAY_PAGE.fullmatch(path)) is None:
                raise
        return await explore.day(request, *asked.groups())

    paths = {name: dataset.paths for name, dataset in datasets.items() if dataset.paths.store}
    pages = [*DataPages(folder, datasets).routes, *explore.routes]
    routes = [*pages, Route("/{path:path}", answer, methods=["GET"])]
    middleware = [Middleware(_Refreshing, paths)] if paths else []
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: http_error_page})


class _Refreshing:
    """Middleware that brings files up to date with an object store before a page shows them.

    Args:
        app: The app behind it.
        paths: Paths of the datasets in an object store, by name.
    """

    def __init__(self, app: ASGIApp, paths: Mapping[str, DatasetPaths]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await run_in_threadpool(self._refresh, scope["path"].split("/"))
        await self._app(scope, receive, send)

    def _refresh(self, names: Sequence[str]) -> None:
        for name, paths in self._paths.items():
            if name in names or names == ["", ""]:
                try:
                    refresh(paths, _REFRESH_SECONDS)
                except PipelineError as error:
                    logger.warning(f"pages of {name!r} may be old: {error}")


def _answer(folder: Path, path: str) -> Response:
    names = path.rstrip("/").split("/")
    target = _find(folder, names)
    try:
        status = os.lstat(target) if target else None
    except (OSError, ValueError):  # too long, or with a character that no path may contain
        status = None
    if target is None or status is None:
        raise HTTPException(404)
    if stat.S_ISREG(status.st_mode) and not path.endswith("/") and _is_public(target.name):
        headers = {"Content-Security-Policy": SANDBOX, "Cache-Control": "no-cache"}
        return FileResponse(target, stat_result=status, media_type=_TYPES[target.suffix], headers=headers)
    if stat.S_ISDIR(status.st_mode) and _FOLDERS[names[0]]:
        if not path.endswith("/"):
            return RedirectResponse(f"/{quote(path)}/")
        return _listing(path, _entries(target))
    raise HTTPException(404)  # FIFOs, sockets and devices are never opened


def _find(folder: Path, names: list[str]) -> Path | None:
    """Return the path of a name below the data folder, or None if it is not served."""
    if names[0] not in _FOLDERS or any(not name or name.startswith(".") or "\0" in name for name in names):
        return None
    try:
        root = (folder / names[0]).resolve()
        target = root.joinpath(*names[1:])
        return target if Path(os.path.realpath(target)) == target else None
    except (OSError, ValueError, RuntimeError):
        return None


def _is_public(name: str) -> bool:
    return Path(name).suffix in _TYPES and not name.startswith(".") and not name.endswith(_INTERNAL)


def _entries(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield f"{entry.name}/"
            elif entry.is_file(follow_symlinks=False) and _is_public(entry.name):
                yield entry.name


def _listing(title: str, entries: Iterator[str] | list[str]) -> Response:
    names = sorted(entries)
    items = "".join(f'<li><a href="./{quote(name)}">{escape(name)}</a>' for name in names[:_MAX_LISTED])
    more = f"<p>{len(names) - _MAX_LISTED:,} more" if len(names) > _MAX_LISTED else ""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8>{_ICON}<title>{escape(title)}</title><ul>{items}</ul>{more}"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": SANDBOX})
