"""What the loader costs, beside raw decoding and beside other loaders."""
