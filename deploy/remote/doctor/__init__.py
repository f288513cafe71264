"""The doctor: what could go wrong on this machine or on a cluster, found before money is spent."""
