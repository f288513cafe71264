"""What is known about each sample: distances, scores and draw counts, in columns."""
