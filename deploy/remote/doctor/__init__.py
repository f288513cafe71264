"""The doctor: finds what would fail on a machine or a cluster before a run is paid for."""
