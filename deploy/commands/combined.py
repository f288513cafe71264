"""Options that several commands share: which run, why, and the parts of a named run that are changed by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

LiveRun = Annotated[Path | None, arg(help="the run's directory; by default the one that is alive under runs/.")]
AnyRun = Annotated[
    Path | None, arg(help="the run's directory; by default the one that is alive under runs/, or the newest.")
]
ClusterUrl = Annotated[str, arg(help="URL of the cluster's dashboard, as in http://127.0.0.1:8265.")]
Reason = Annotated[str, arg(help="why, for the log.")]
Settings = Annotated[
    tuple[str, ...], arg(help="fields to change, as in --set train.total_steps=200 curriculum.end=0.5.")
]
AllowHosts = Annotated[
    tuple[str, ...], arg(help="hosts that may have private addresses, and may be reached by plain http.")
]
UnderRay = Annotated[bool, arg(help="use actors under Ray; --no-ray runs everything in this process.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Combined:
    """Parts of a named run to change by name; --set changes any field, and takes precedence."""

    method: str | None = None
    """mae, simmim, bootmae, conmim, clmae or a method of an extension, instead of the named run's."""
    masking: str | None = None
    """auto (the method's own), random, block or simmim."""
    curriculum: str | None = None
    """policy of the draws: uniform, prototypical, hard, or pass and bss, which also turn patch-aware selection on."""
    mto: Annotated[bool, arg(name="mto.enabled")] = False
    """add the masked-token losses."""
    mto_preset: Annotated[str | None, arg(name="mto.preset")] = None
    """add them as recommended, as in the paper, or literal (the formulas exactly as printed)."""
    profile: int = 0
    """number of steps to trace into the run directory, as in --profile 10."""
    deterministic: bool = False
    """use deterministic kernels only, and loaders with one decoder."""

    def settings(self) -> tuple[str, ...]:
        """Return the same changes as settings of --set.

        Raises:
            ValueError: the masking or preset is unknown; the message names the nearest.
        """
        from deploy.runs.overrides import combination

        mto = self.mto_preset or ("recommended" if self.mto else None)
        parts = combination(method=self.method, masking=self.masking, curriculum=self.curriculum, mto=mto)
        parts += [f"train.profile_steps={self.profile}"] if self.profile else []
        return tuple(parts + ["train.deterministic=true"] * self.deterministic)


Combination = Annotated[Combined, arg(name="")]
AS_NAMED = Combined()
