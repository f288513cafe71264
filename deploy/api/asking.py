"""What every route needs: the run's service, and the words about the token in the API's description."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from deploy.api.models import ConflictResponse, ErrorResponse
from deploy.api.service import RunService

BEARER = HTTPBearer(auto_error=False, description="The run's token, from the file api-token in its directory.")
"""For the description; the guards compare it."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 405, 413, 415, 422, 429, 503)
}
CHANGES: dict[int | str, dict[str, Any]] = {**REFUSALS, 409: {"model": ConflictResponse}}


def _service(request: Request) -> RunService:
    service: RunService = request.app.state.service
    return service


Service = Annotated[RunService, Depends(_service)]
