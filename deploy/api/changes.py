"""POST: controls, scale, pause, resume, stop, export."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends

from deploy.api.asking import BEARER, CHANGES, Service
from deploy.api.models import (
    ControlRequest,
    ControlResponse,
    ExportResponse,
    RunRequest,
    RunResponse,
    ScaleRequest,
    ScaleResponse,
)

router = APIRouter(tags=["change"], dependencies=[Depends(BEARER)], responses=CHANGES)


async def arrival() -> float:
    """When the request came, before it waits for a thread; control latency counts from here."""
    return time.time()


@router.post("/controls", response_model=ControlResponse)
def controls(asked: ControlRequest, service: Service, arrived_s: float = Depends(arrival)) -> dict[str, Any]:
    """Set or release the effective size, the temperature, the policy; the reply names the first window under it."""
    return service.control(asked, arrived_s)


@router.post("/scale", response_model=ScaleResponse)
def scale(asked: ScaleRequest, service: Service) -> dict[str, Any]:
    """Wish for another number of loader workers."""
    return service.scale(asked)


@router.post("/pause", response_model=RunResponse)
def pause(asked: RunRequest, service: Service) -> dict[str, Any]:
    """Let the trainers rest before their next step."""
    return service.pause(asked)


@router.post("/resume", response_model=RunResponse)
def resume(asked: RunRequest, service: Service) -> dict[str, Any]:
    """Let resting trainers go on."""
    return service.resume(asked)


@router.post("/export", response_model=ExportResponse)
def export(asked: RunRequest, service: Service) -> dict[str, Any]:
    """Write the sample table as Parquet into the run's report folder."""
    return service.export(asked)


@router.post("/stop", response_model=RunResponse)
def stop(asked: RunRequest, service: Service) -> dict[str, Any]:
    """Let the run write a checkpoint and end."""
    return service.stop(asked)
