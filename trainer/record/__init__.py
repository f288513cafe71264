"""The files of a run: metrics, checkpoints, pictures, encoders."""
