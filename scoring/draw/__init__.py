"""From weights and a seed to sample ids: exact, counted, the same everywhere."""
