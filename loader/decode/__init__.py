"""Encoded bytes to pixels: the check before any decoder, the crop, the decoders and the resize."""
