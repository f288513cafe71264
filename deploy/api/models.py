"""What the API takes and gives, as strict models: a field that is unknown, missing or of another type is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Author = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
Reason = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Strict(BaseModel):
    """Base of the requests."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    author: Author
    """Who asks; goes to the log."""
    reason: Reason = ""
    """Why; goes to the log."""


class ControlRequest(Strict):
    """A change of what is drawn."""

    kind: Literal["effective_size", "temperature", "policy", "distances", "release"]
    """What to set; release gives the effective size back to the schedule."""
    value: float | Annotated[str, StringConstraints(max_length=1000)] | None = None
    """A share of the data, a temperature, a policy's name, a file of `tempera score`; nothing for a release."""
    expected_version: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Control version that the author has seen: refused if another change came since."""
    request: Annotated[str, StringConstraints(max_length=64)] = ""
    """Identity of this change: sent twice it is applied once."""


class ScaleRequest(Strict):
    """Another number of loader workers."""

    loaders: Annotated[int, Field(ge=1, le=1024)]
    """How many."""


class RunRequest(Strict):
    """Pause, go on, or stop."""


class ControlResponse(BaseModel):
    """What a control did."""

    version: int
    """Control version after it."""
    window: int
    """First window drawn under it."""
    step: int
    """First step of that window."""
    effective_size: float | None
    """In force from then on."""
    temperature: float | None
    """In force from then on."""


class ScaleResponse(BaseModel):
    """What scaling did."""

    previous: int
    """Loaders wished for before."""
    size: int
    """Loaders wished for now."""
    author: str
    """Who asked."""
    reason: str
    """Why."""


class RunResponse(BaseModel):
    """Whether the run goes on."""

    paused: bool
    """The trainers rest."""
    pausing: bool
    """They are asked to."""
    stopping: bool
    """They are asked to write a checkpoint and end."""


class ExportResponse(BaseModel):
    """Where the table lies."""

    path: str
    """The file, below the run directory."""
    rows: int
    """Samples in it."""


class ErrorResponse(BaseModel):
    """Why a request was refused."""

    error: str
    """One line."""


class ConflictResponse(ErrorResponse):
    """A change that came too late."""

    version: int | None = None
    """The control version now."""
    winner: dict[str, Any] | None = None
    """The log's entry of the change that came first."""
