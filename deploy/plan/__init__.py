"""What a run will do and cost, before it is started."""
