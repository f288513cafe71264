"""Errors of the trainer that callers may catch."""


class TrainerError(Exception):
    """Base of the trainer's errors."""


class CheckpointError(TrainerError):
    """A checkpoint is missing, damaged or belongs to another run."""


class NonFiniteLossError(TrainerError):
    """A loss or gradient is NaN or infinite; the weights before it are kept."""

    def __init__(self, step: int, sample_ids: list[int], path: str) -> None:
        super().__init__(step, sample_ids, path)
        self.step, self.sample_ids, self.path = step, sample_ids, path

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.sample_ids[:8])) or "none alone (the gradient overflowed)"
        more = f" and {len(self.sample_ids) - 8} more" if len(self.sample_ids) > 8 else ""
        return (
            f"the loss must be finite; step {self.step} gave NaN or infinity, sample ids {shown}{more}. The weights "
            "were not updated; "
            f"the losses of the step are in {self.path}. Look at these images, or lower base_lr, or set clip_norm, "
            "and resume."
        )

    def __reduce__(self) -> tuple[type["NonFiniteLossError"], tuple[int, list[int], str]]:
        return type(self), (self.step, self.sample_ids, self.path)
