"""The speed of the loader, beside raw decoding and other loaders."""
