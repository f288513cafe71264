"""A run as people follow it in a terminal: the log, the live view, progress bars and lines."""
