"""The routes: one table from path to the method of `RunService` that answers it, and the few that do more."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends
from fastapi.responses import Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from deploy.api import changes, models
from deploy.api.options import STREAMS
from deploy.api.service import Act, RunService
from deploy.observe.prometheus import CONTENT_TYPE, metrics_text

API = "/api/v1"
STREAM_S = 1.0
"""Seconds between two states in the stream."""
END_CHECKS = 5
"""How often between two states the stream checks whether the run is over."""
BROWSER_CACHE = {"cache-control": "private, max-age=3600"}
BEARER = HTTPBearer(auto_error=False, description="The run's token, from the file api-token in its directory.")
"""Only describes the token in /openapi.json; `guards` compares it."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": models.ErrorResponse} for status in (400, 401, 403, 404, 405, 413, 415, 422, 429, 503)
}
ACTS: dict[Act, str] = {
    "pause": "Pause the trainers before their next step.",
    "resume": "Let paused trainers continue.",
    "stop": "Ask the run to write a checkpoint and end.",
}
CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": models.ConflictResponse}}


def build_router(service: RunService) -> APIRouter:
    """Return the routes of one run, all below /api/v1 but for /metrics, where Prometheus looks for it."""
    router = APIRouter(dependencies=[Depends(BEARER)], responses=REFUSALS)
    for path, read, answer in (
        ("/state", service.state, models.State),
        ("/metrics", service.metrics, models.MetricRows),
        ("/curve", service.curve, models.Curve),
        ("/distribution", service.distribution, models.Distribution),
        ("/solve", service.solve, models.InForce),
        ("/summary", service.summary, models.Summary),
        ("/scores", service.scores, models.Scores),
        ("/loaders", service.loaders, models.Loaders),
        ("/log", service.entries, models.LogPage),
        ("/bad-samples", service.log_index.bad_samples, models.BadSamples),
        ("/samples/top", service.top, models.TopSamples),
        ("/samples/{sample_id}", service.sample, models.Sample),
    ):
        # Fields that were not set are left out: a selection in this process has no Ray node.
        router.add_api_route(API + path, read, response_model=answer, response_model_exclude_unset=True, tags=["look"])
    change: dict[str, Any] = {"methods": ["POST"], "tags": ["change"], "responses": CONFLICT}
    router.add_api_route(API + "/scale", service.scale, response_model=changes.ScaleResponse, **change)
    router.add_api_route(API + "/export", service.export, response_model=changes.ExportResponse, **change)
    for kind, effect in ACTS.items():
        act = partial(service.act, kind)
        router.add_api_route(
            f"{API}/{kind}", act, name=kind, description=effect, response_model=changes.RunResponse, **change
        )

    @router.post(API + "/controls", response_model=changes.ControlResponse, tags=["change"], responses=CONFLICT)
    def controls(request: changes.ControlRequest, arrived_s: Annotated[float, Depends(_arrival)]) -> dict[str, Any]:
        """Set or release the effective size, the temperature, the policy; the reply names the first window under it."""
        return service.control(request, arrived_s)

    @router.get(API + "/samples/{sample_id}/image", tags=["look"], **_media("image/jpeg", "binary"))
    def image(sample_id: models.SampleId, side: models.Side = 96) -> Response:
        """Return the sample as a square JPEG, decoded as the loaders decode it."""
        return Response(service.samples.picture(sample_id, side), media_type="image/jpeg", headers=BROWSER_CACHE)

    @router.get(API + "/stream", tags=["look"], **_media("text/event-stream"))
    async def stream() -> StreamingResponse:
        """Send events: "state" (as /state) once a second, "metrics" {"rows"} when there are new rows."""
        if service.num_readers >= STREAMS:
            raise HTTPException(429, f"at most {STREAMS} readers may follow the stream; ask for /api/v1/state instead.")
        return StreamingResponse(_events(service), media_type="text/event-stream")

    @router.get("/metrics", tags=["look"], **_media("text/plain"))
    def prometheus() -> Response:
        """Return the run's metrics in Prometheus' text format."""
        return Response(metrics_text(service.state()), media_type=CONTENT_TYPE)

    return router


def _media(kind: str, form: str = "") -> dict[str, Any]:
    """Return the description of an answer that is not JSON."""
    schema = {"type": "string"} | ({"format": form} if form else {})
    return {"response_class": Response, "responses": {200: {"content": {kind: {"schema": schema}}}}}


async def _arrival() -> float:
    """Return the time before the request waits for a thread; control latency counts from here."""
    return time.time()


async def _events(service: RunService) -> AsyncIterator[str]:
    """Yield the stream's server-sent events until the run ends or the reader goes."""
    service.num_readers += 1
    lines = service.metric_lines
    try:
        # A new reader gets the newest row; GET /metrics has the others.
        line = max(0, await run_in_threadpool(lines.update) - 1)
        while not service.over.is_set():
            events: list[tuple[str, dict[str, Any]]] = []
            try:
                events.append(("state", await run_in_threadpool(service.state)))
            except Exception as error:  # the selection restarts; the reader waits with us
                events.append(("trouble", {"error": " ".join(str(error).split())}))
            if rows := await run_in_threadpool(lines.rows_from, line):
                line += len(rows)
                events.append(("metrics", {"rows": rows}))
            for name, data in events:
                yield f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
            # Asleep in short pieces, so that the end of the run does not wait for its readers.
            for _ in range(END_CHECKS):
                if not service.over.is_set():
                    await anyio.sleep(STREAM_S / END_CHECKS)
            # A comment: the write fails if the reader has gone, and its place is free again.
            yield ": beat\n\n"
    finally:
        service.num_readers -= 1
