"""The options by which a named run is combined from parts, alike for `tempera train`, `submit` and `manifest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True, slots=True)
class Combined:
    """What of a named run is changed by name; --set changes any field, and wins."""

    method: str | None = None
    """mae, simmim, bootmae, conmim, clmae or one of your own, instead of the named run's."""
    masking: str | None = None
    """auto (the method's own), random, block or simmim."""
    curriculum: str | None = None
    """what is drawn: uniform, prototypical, hard, or pass and bss, which also turn the selection on."""
    mto: Annotated[bool, arg(name="mto.enabled")] = False
    """add the masked-token losses."""
    mto_preset: Annotated[str | None, arg(name="mto.preset")] = None
    """add them as recommended, as in the paper, or literal (the formulas exactly as printed)."""
    profile: int = 0
    """write a trace of so many steps into the run directory, as in --profile 10."""
    deterministic: bool = False
    """deterministic kernels only, and loaders of one kind."""

    def settings(self) -> tuple[str, ...]:
        """The same as fields of the run, as in --set.

        Raises:
            ValueError: no such masking or preset; the nearest is named.
        """
        from deploy.runs.overrides import combination

        mto = self.mto_preset or ("recommended" if self.mto else None)
        parts = combination(method=self.method, masking=self.masking, curriculum=self.curriculum, mto=mto)
        parts += [f"train.profile_steps={self.profile}"] if self.profile else []
        return tuple(parts + ["train.deterministic=true"] * self.deterministic)


Combination = Annotated[Combined, arg(name="")]
"""A command's parameter: the options stand among its own, without a prefix."""
AS_NAMED = Combined()
"""The named run as it is."""
