"""What a frozen or fine-tuned encoder is worth: neighbours, probes, fine-tuning, few shots, detection, segmentation."""
