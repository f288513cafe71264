"""From an index to prototypes: features, clusters, distances, and pages to look at them."""
