"""Shards and their index: images into tars, tars into an index, samples out of tars."""
