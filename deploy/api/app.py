"""The application: routes, errors as one line, the page's files; behind the guards."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from deploy.api.backend import WrongState
from deploy.api.guards import App, Guard, Receive, Scope, Send
from deploy.api.options import THREADS, ApiOptions
from deploy.api.routes import build_router
from deploy.api.samples import UnknownSample
from deploy.api.service import Conflict, RunService
from deploy.api.token import TokenFile
from loader import BadSampleError, LoaderError
from scoring import LogUnavailable, ScoringError

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent.parent / "dashboard"
VERSION = "1"
STATUS = {
    UnknownSample: 404,
    WrongState: 409,
    BadSampleError: 422,
    ValueError: 422,
    LogUnavailable: 503,
    ScoringError: 503,
    LoaderError: 503,
}
"""HTTP status by exception; the most specific class counts."""


def build_app(service: RunService, *, options: ApiOptions, token: TokenFile) -> App:
    """Return the whole application, as uvicorn serves it."""
    return _LastResort(Guard(build_routes(service), options=options, token=token))


def build_routes(service: RunService) -> FastAPI:
    """Return the routes, their description and the page, unguarded."""
    app = FastAPI(
        title="Tempera",
        summary="Look at a run and change what it draws, while it trains.",
        version=VERSION,
        docs_url=None,  # FastAPI's page loads its scripts from another machine
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(build_router(service))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        if not (PAGE / "index.html").is_file():
            raise HTTPException(404, "this installation has no dashboard page; the API is below /api/v1/.")
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    app.mount("/assets", StaticFiles(directory=PAGE / "assets", check_dir=False), name="assets")
    _add_errors(app)
    return app


def _add_errors(app: FastAPI) -> None:
    """Make every error {"error": one line}."""

    @app.exception_handler(RequestValidationError)
    def _(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _error(400, "the body must be JSON.")
        place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return _error(422, f"{place}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    def _(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Conflict)
    def _(request: Request, error: Conflict) -> JSONResponse:
        return _error(409, str(error), version=error.version, winner=error.winner)

    for kind, status in STATUS.items():
        app.add_exception_handler(kind, lambda request, error, status=status: _error(status, str(error)))


def _error(status: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split()), **more}, status)


class _LastResort:
    """Bounds the threads that answer, and turns an unexpected error into a line for the caller and one for the log."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._bounded = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._bounded:  # the limiter belongs to the event loop, which runs only now
            anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
            self._bounded = True
        started = False

        async def noting(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            log.exception("a request failed: %s %s", scope["method"], scope["path"])
            if not started:
                await _error(500, "this is a defect; the run's messages say where.")(scope, receive, send)
