"""The sample table: distances, scores and draw counts, in columns."""
