"""What images are compared by: descriptions of colour and shape, networks, and the features on disk."""
