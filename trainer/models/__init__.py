"""Encoders and decoders, made of timm's blocks, and their weights."""
