"""GET: samples, and their pictures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from starlette.exceptions import HTTPException

from deploy.api.asking import BEARER, REFUSALS, Service
from loader import BadSampleError

router = APIRouter(prefix="/samples", tags=["look"], dependencies=[Depends(BEARER)], responses=REFUSALS)

SampleId = Annotated[int, Path(ge=0, lt=2**63)]
KEPT_BY_BROWSER = {"cache-control": "private, max-age=3600"}


@router.get("/top")
def top(
    service: Service,
    by: Literal["probability", "times_drawn", "score", "prototypes"] = "probability",
    k: Annotated[int, Query(ge=1, le=200)] = 24,
) -> dict[str, Any]:
    """The samples with the highest probability, draws or score, or the prototypes."""
    return service.top(by, k)


@router.get("/{sample_id}")
def sample(sample_id: SampleId, service: Service) -> dict[str, Any]:
    """What is known of one sample."""
    _require(sample_id, service)
    return service.sample(sample_id)


@router.get("/{sample_id}/image", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def image(sample_id: SampleId, service: Service, side: Annotated[int, Query(ge=16, le=512)] = 96) -> Response:
    """Its picture as the loaders see it, a square."""
    _require(sample_id, service)
    try:
        data = service.samples.picture(sample_id, side)
    except BadSampleError as error:
        raise HTTPException(422, f"sample {sample_id} cannot be decoded: {error}") from None
    return Response(data, media_type="image/jpeg", headers=KEPT_BY_BROWSER)


def _require(sample_id: int, service: Service) -> None:
    num_samples = len(service.samples.index)
    if sample_id >= num_samples:
        raise HTTPException(404, f"sample ids are 0..{num_samples - 1}; got {sample_id}.")
