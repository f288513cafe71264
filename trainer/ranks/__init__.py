"""The ranks of a run: their group and collectives, and the agreement to stop or pause."""
