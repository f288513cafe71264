"""What a frozen or fine-tuned encoder is worth: nearest neighbours first."""

from trainer.evaluate.knn import embed, nearest_neighbour_accuracy

__all__ = ["embed", "nearest_neighbour_accuracy"]
