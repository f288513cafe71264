"""The durable history of a run: the log, its snapshots, and drawing everything again from them."""
