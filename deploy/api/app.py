"""The application: routes, errors as one line, the page's files; behind the guards."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from deploy.api import changes, figures, pictures
from deploy.api.guards import App, Guard, Receive, Scope, Send
from deploy.api.options import THREADS, ApiOptions
from deploy.api.service import Conflict, NotNow, RunService
from deploy.api.token import TokenFile
from deploy.observe import CONTENT_TYPE, metrics_text
from loader import LoaderError
from scoring import LogUnavailable, ScoringError

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent.parent / "dashboard"
VERSION = "1"


def build_app(service: RunService, *, options: ApiOptions, token: TokenFile) -> App:
    """The whole application, as uvicorn serves it."""
    return _Threads(Guard(build_routes(service), options=options, token=token))


def build_routes(service: RunService) -> FastAPI:
    """The routes and their description, unguarded."""
    app = FastAPI(
        title="Tempera",
        summary="Look at a run and change what it draws, while it trains.",
        version=VERSION,
        docs_url=None,  # its page would come from another machine
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for part in (figures, pictures, changes):
        app.include_router(part.router, prefix="/api/v1")
    _add_page(app)
    _add_metrics(app, service)
    _add_errors(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        if not (PAGE / "index.html").is_file():
            raise HTTPException(404, "this installation has no dashboard page; the API is below /api/v1/.")
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    app.mount("/assets", StaticFiles(directory=PAGE / "assets", check_dir=False), name="assets")


def _add_metrics(app: FastAPI, service: RunService) -> None:
    @app.get("/metrics", tags=["look"], response_class=Response)
    def prometheus() -> Response:
        """The run's metrics in Prometheus' text format."""
        return Response(metrics_text(service.state()), media_type=CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    @app.exception_handler(RequestValidationError)
    def _(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        not_json = first["type"] == "json_invalid"
        place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return _error(400 if not_json else 422, "the body must be JSON." if not_json else f"{place}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    def _(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Conflict)
    def _(request: Request, error: Conflict) -> JSONResponse:
        return _error(409, str(error), version=error.version, winner=error.winner)

    @app.exception_handler(NotNow)
    def _(request: Request, error: NotNow) -> JSONResponse:
        return _error(409, str(error))

    @app.exception_handler(ValueError)
    def _(request: Request, error: ValueError) -> JSONResponse:
        return _error(422, str(error))

    @app.exception_handler(LogUnavailable)
    @app.exception_handler(ScoringError)
    @app.exception_handler(LoaderError)
    def _(request: Request, error: Exception) -> JSONResponse:
        return _error(503, str(error))


def _error(status: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split()), **more}, status)


class _Threads:
    """Bounds the threads that answer, and turns what nobody foresaw into a line for the caller and one for the log."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._bounded = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._bounded:
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
