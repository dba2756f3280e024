"""Answers of the data server that say why a page cannot be shown."""

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response


def error_page(message: str, status: int, request: Request) -> Response:
    """Return a message as a small page to a browser, and as JSON to a program.

    Args:
        message: Why the page cannot be shown.
        status: HTTP status.
        request: The request.
    """
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"message": message}, status_code=status)
    icon = '<link rel=icon href="data:,">'  # otherwise a browser asks for one
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{icon}<title>No page</title>"
    style = "<style>body{font:16px system-ui,sans-serif;margin:2rem;max-width:60rem}</style>"
    text = f'{head}{style}<p>{escape(message)}<p><a href="/">All datasets</a>'
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return HTMLResponse(text, status, {"Content-Security-Policy": policy, "Cache-Control": "no-store"})
