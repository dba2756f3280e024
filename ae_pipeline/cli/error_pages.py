"""Answers of the data server that say why a page cannot be shown."""

from collections.abc import Iterable, Mapping
from html import escape
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

_NOT_FOUND = "there is nothing at this address; follow a link from the page of all datasets"


def http_error_page(request: Request, error: Exception) -> Response:
    """Return the page of an error that Starlette raised or a page could not be found for.

    Args:
        request: The request.
        error: The `HTTPException`.
    """
    assert isinstance(error, HTTPException)
    is_plain = error.status_code == HTTPStatus.NOT_FOUND and error.detail == HTTPStatus.NOT_FOUND.phrase
    return error_page(_NOT_FOUND if is_plain else error.detail, error.status_code, request, error.headers)


def unknown_dataset(name: str, names: Iterable[str]) -> HTTPException:
    """Return the error that there is no dataset of a name.

    Args:
        name: The name.
        names: Names of the datasets.
    """
    return HTTPException(404, f"there is no dataset {name!r}; choose among {', '.join(sorted(names))}")


def error_page(message: str, status: int, request: Request, headers: Mapping[str, str] | None = None) -> Response:
    """Return a message as a small page to a browser, and as JSON to a program.

    Args:
        message: Why the page cannot be shown.
        status: HTTP status.
        request: The request.
        headers: Further headers.
    """
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"message": message}, status_code=status, headers=headers)
    icon = '<link rel=icon href="data:,">'  # otherwise a browser asks for one
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{icon}<title>No page</title>"
    style = "<style>body{font:16px system-ui,sans-serif;margin:2rem;max-width:60rem}</style>"
    text = f'{head}{style}<p>{escape(message)}<p><a href="/">All datasets</a>'
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return HTMLResponse(
        text, status, {"Content-Security-Policy": policy, "Cache-Control": "no-store", **(headers or {})}
    )
