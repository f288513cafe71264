"""Clusters elsewhere: jobs on them, manifests that describe them, and checks of their machines."""
