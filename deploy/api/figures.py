"""GET: the run in figures, and the stream of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from deploy.api.asking import BEARER, REFUSALS, Service
from deploy.api.options import STREAMS
from deploy.api.service import RunService

router = APIRouter(tags=["look"], dependencies=[Depends(BEARER)], responses=REFUSALS)

STREAM_S = 1.0
"""Seconds between two states in the stream."""
LOOKS = 5
"""Looks between them whether the run is over."""
FIRST_ROWS = 1
"""Rows of metrics that a new reader of the stream gets; the others are there to be asked for."""

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/state")
def state(service: Service) -> dict[str, Any]:
    """The run at a glance: progress, what is in force, loaders, where a change would land and when."""
    return service.state()


@router.get("/metrics")
def metrics(
    service: Service, since: Annotated[int, Query(ge=0)] = 0, points: Annotated[int, Query(ge=1, le=5000)] = 500
) -> dict[str, Any]:
    """The logged steps, evenly chosen."""
    rows = service.metrics.choose(since=since, points=points)
    return {"rows": rows, "total": service.metrics.update()}


@router.get("/curve")
def curve(service: Service) -> dict[str, Any]:
    """The effective size: past, and scheduled."""
    return service.curve()


@router.get("/distribution")
def distribution(service: Service, bins: Annotated[int, Query(ge=1, le=512)] = 64) -> dict[str, Any]:
    """How the distances lie, and what of them is being drawn."""
    return service.view("distribution", bins=bins)


@router.get("/solve")
def solve(
    service: Service,
    effective_size: Annotated[float | None, Query(gt=0, le=1, allow_inf_nan=False)] = None,
    temperature: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
    policy: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
) -> dict[str, Any]:
    """What a change would put in force: the temperature of an effective size, the size of a temperature or policy."""
    asked = {"effective_size": effective_size, "temperature": temperature, "policy": policy}
    given = {kind: value for kind, value in asked.items() if value is not None}
    if len(given) != 1:
        raise HTTPException(422, "give effective_size, temperature or policy, one of the three.")
    ((kind, value),) = given.items()
    return service.view("forecast", kind=kind, value=value)


@router.get("/summary")
def summary(service: Service, top: Annotated[int, Query(ge=1, le=1000)] = 10) -> dict[str, Any]:
    """The sample table at a glance: who is drawn most, effective sample size, entropy."""
    return service.view("summary", top=top)


@router.get("/scores")
def scores(service: Service) -> dict[str, Any]:
    """Score quantiles by kind, and the selection rounds."""
    return service.scores()


@router.get("/loaders")
def loaders(service: Service) -> dict[str, Any]:
    """The loader workers, how many are wished for, by whom and why."""
    return service.loaders()


@router.get("/log")
def entries(
    service: Service, limit: Limit = 50, before: Annotated[int | None, Query(ge=1)] = None, changes: bool = False
) -> dict[str, Any]:
    """Who changed what, and from which window on."""
    return service.entries(limit, before, changes=changes)


@router.get("/bad-samples")
def bad_samples(service: Service, limit: Limit = 100) -> dict[str, Any]:
    """Samples that could not be decoded, and why."""
    return service.bad_samples(limit)


@router.get("/stream", response_class=StreamingResponse)
async def stream(service: Service) -> StreamingResponse:
    """Server-sent events: "state" once a second, "metrics" when there are new rows."""
    if service.readers >= STREAMS:
        raise HTTPException(429, f"at most {STREAMS} readers may follow the stream; ask for /api/v1/state instead.")
    return StreamingResponse(_events(service), media_type="text/event-stream")


async def _events(service: RunService) -> AsyncIterator[str]:
    service.readers += 1
    try:
        line = max(0, await run_in_threadpool(service.metrics.update) - FIRST_ROWS)
        while not service.over.is_set():
            yield await run_in_threadpool(_state_event, service)
            rows = await run_in_threadpool(service.metrics.rows_from, line)
            if rows:
                line += len(rows)
                yield _event("metrics", {"rows": rows})
            for _ in range(LOOKS):
                if not service.over.is_set():
                    await anyio.sleep(STREAM_S / LOOKS)
            yield ": beat\n\n"
    finally:
        service.readers -= 1


def _state_event(service: RunService) -> str:
    try:
        return _event("state", service.state())
    except Exception as error:  # the selection is away for a moment; the reader waits with us
        return _event("trouble", {"error": " ".join(str(error).split())})


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
