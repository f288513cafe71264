"""Wiring: named runs, the `tempera` command, Ray clusters, the demo and its report. Nothing imports this package."""
