"""What a change of a run takes and answers: the bodies of POST requests, each followed by its reply.

Bodies are strict: an unknown or missing field, or one of another type, is refused with 422. The OpenAPI document
describes both from these classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from deploy.api.models import Answer

Author = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
Reason = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class RunRequest(BaseModel):
    """Pause, resume, stop, export."""

    # Strict: neither "2" nor true is a number of loaders.
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    author: Author
    """Who asks; written into the log."""
    reason: Reason = ""
    """Why; written into the log."""


class RunResponse(Answer):
    paused: bool = Field(description="The trainers are paused.")
    pausing: bool = Field(description="They were asked to pause.")
    stopping: bool = Field(description="They were asked to write a checkpoint and end.")


class ExportResponse(Answer):
    path: str = Field(description="The Parquet file, in the report folder of the run directory.")
    rows: int = Field(description="Samples in it.")


class ControlRequest(RunRequest):
    kind: Literal["effective_size", "temperature", "policy", "distances", "release"]
    """What to set; release returns the effective size to the schedule."""
    value: float | Annotated[str, StringConstraints(max_length=1000)] | None = None
    """A share of the data, a temperature, a policy's name, a prototypes file below the run's directory or beside its
    index; nothing for a release."""
    expected_version: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Control version that the author has seen: refused with 409 if another change came since."""
    request: Annotated[str, StringConstraints(max_length=64)] = ""
    """Any text that identifies this change: sent twice it is applied once."""


class ControlResponse(Answer):
    version: int = Field(description="Control version after it.")
    window: int = Field(description="First window drawn under it.")
    step: int = Field(description="First step of that window.")
    effective_size: float | None = Field(description="In force from then on.")
    temperature: float | None = Field(description="In force from then on; null where draws are uniform.")


class ScaleRequest(RunRequest):
    loaders: Annotated[int, Field(ge=1, le=1024)]
    """Desired number."""


class ScaleResponse(Answer):
    """What scaling did; the fleet then starts or stops loaders."""

    previous: int = Field(description="Desired loaders before.")
    size: int = Field(description="Desired loaders now.")
    author: str = Field(description="Who asked.")
    reason: str = Field(description="Why.")
