"""From an index to prototypes: features, clusters, distances, and pages that show them."""
