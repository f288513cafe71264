"""What one trainer rank assembles and writes down: the stream, the evaluations, the reports, the oracle."""
