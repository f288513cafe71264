"""Starts a run under Ray or in this process, and sees it to its end."""
