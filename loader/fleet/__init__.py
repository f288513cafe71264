"""How many loaders there are, of which kind, and who asked for it: decisions without Ray."""
