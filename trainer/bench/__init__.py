"""The cost of a training step, beside the same model written plainly."""
