"""What a run leaves behind: metrics, checkpoints, pictures, encoders."""
