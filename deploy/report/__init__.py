"""A run's report: its figures, its pictures, and the one self-contained page that shows them."""
