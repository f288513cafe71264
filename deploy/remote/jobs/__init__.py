"""Runs as jobs of a Ray cluster: the cluster's job server, and the code that a job takes along."""
