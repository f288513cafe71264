"""What a run is: its configuration, named runs, overrides and run directory."""
