"""Work built on runs: the demo, the papers' claims, prototypes."""
