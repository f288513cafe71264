"""Evaluations of an encoder: neighbours, probes, few shots, fine-tuning, detection, segmentation."""
