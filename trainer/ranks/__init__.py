"""What ranks do together: who they are, what they share, and when they rest."""
