"""Work that runs Tempera to learn something: the demo, the papers' claims, prototypes."""
