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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.api.backend import WrongState
from deploy.api.guards import Guard
from deploy.api.options import THREADS, ApiOptions
from deploy.api.routes import build_router
from deploy.api.samples import UnknownSample
from deploy.api.service import Conflict, RunService
from deploy.api.token import TokenFile
from loader import BadSampleError, LoaderError
from scoring import ScoringError

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent.parent / "dashboard"
STATUS: dict[type[Exception], int] = {
    UnknownSample: 404,
    Conflict: 409,
    WrongState: 409,
    BadSampleError: 422,
    ValueError: 422,
    ScoringError: 503,
    LoaderError: 503,
}
"""HTTP status by exception; the most specific class counts."""


def build_app(service: RunService, *, options: ApiOptions, token: TokenFile) -> ASGIApp:
    """Return the whole application as uvicorn serves it: the routes behind the guards.

    An error that no route expects is one line for the caller and a traceback in the log, never a closed connection.
    """
    guarded = Guard(build_routes(service), options=options, token=token)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # The limiter belongs to the event loop, so it can be set only while that runs.
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await guarded(scope, receive, send_and_note)
        except Exception:
            log.exception("a request failed: %s %s", scope["method"], scope["path"])
            if not started:  # a second head would corrupt the answer that has begun
                refusal = JSONResponse({"error": "this is a defect; the run's messages say where."}, 500)
                await refusal(scope, receive, send)

    return answer


def build_routes(service: RunService) -> FastAPI:
    """Return the routes, their description and the page, unguarded."""
    app = FastAPI(
        title="Tempera",
        summary="Look at a run and change what it draws, while it trains.",
        version="1",
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
    async def healthz() -> dict[str, bool]:  # async: it answers while all threads are busy
        return {"ok": True}

    app.mount("/assets", StaticFiles(directory=PAGE / "assets", check_dir=False), name="assets")
    for kind in (RequestValidationError, HTTPException, *STATUS):
        app.add_exception_handler(kind, answer_error)
    return app


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Return {"error": one line}; after a conflict also the control "version" now and the "winner" of the conflict."""
    facts: dict[str, Any] = {}
    if isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
    elif isinstance(error, RequestValidationError):
        # Pydantic lists every wrong field; one line names the first.
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        status, message = 422, f"{place}: {first['msg']}."
        if first["type"] == "json_invalid":
            status, message = 400, "the body must be JSON."
    else:
        status, message = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), str(error)
        if isinstance(error, Conflict):
            facts = {"version": error.version, "winner": error.winner}
    return JSONResponse({"error": " ".join(message.split()), **facts}, status)
