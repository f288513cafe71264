"""The loaders of a run: how many, of which spec, and why they changed. Only `actors` knows Ray."""
