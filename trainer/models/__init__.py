"""Encoders and decoders, made of timm's blocks."""
