"""Runs as jobs of a Ray cluster: its job server, and the code that is shipped with a job."""
