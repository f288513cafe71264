"""What images are compared by: descriptions of shape and networks, normalised, kept on disk."""
