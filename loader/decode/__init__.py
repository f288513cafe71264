"""From encoded bytes to pixels: the check before any decoder, the crop, and the decoders themselves."""
