"""How many loaders there are, of which kind, and who asked for it: decisions, and in `actors` the loaders on Ray."""
