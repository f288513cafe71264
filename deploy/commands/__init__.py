"""The commands of `tempera`: each function is one, its signature the options, its return the answer.

Heavy packages (torch, ray, matplotlib) are imported inside the functions, so that `tempera --help` and `tempera
log` answer at once.
"""
