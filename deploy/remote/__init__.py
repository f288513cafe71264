"""Clusters elsewhere: jobs, manifests, and checks of their machines."""
