"""The papers' claims, measured at a size that fits the machine: arms of equal steps, several seeds, one table."""
