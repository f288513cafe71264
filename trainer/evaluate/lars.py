"""LARS (You et al., arXiv:1708.03888) as MAE's linear probe uses it (METHODS section 1)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose steps of matrices are scaled by their norms; vectors take raw, undecayed steps.

    A group may set `momentum` (mu), `trust`, the trust coefficient, and `weight_decay` (wd); the defaults are MAE's.
    """

    def __init__(self, groups: Iterable[Any], *, lr: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "momentum": 0.9, "trust": 0.001, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step: d = g + wd p; d *= trust |p| / |d| (1 where a norm is 0); m = mu m + d; p -= lr m."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                step = parameter.grad
                if parameter.ndim > 1:  # MAE leaves biases and norms unscaled and undecayed
                    step = step + group["weight_decay"] * parameter
                    size, length = parameter.norm(), step.norm()
                    known = (size > 0) & (length > 0)
                    step = step * torch.where(known, group["trust"] * size / length.clamp(min=1e-30), 1.0)
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(group["momentum"]).add_(step)
                parameter.sub_(state["momentum"], alpha=group["lr"])
