"""What a frozen or fine-tuned encoder is worth: neighbours, probes, fine-tuning, few shots, detection, segmentation."""

from trainer.evaluate.encoders import Subject, subject_of_run, subject_of_timm
from trainer.evaluate.knn import PROTOCOLS, embed, nearest_neighbour_accuracy, neighbour_figures
from trainer.evaluate.rauc import rauc

__all__ = [
    "PROTOCOLS",
    "Subject",
    "embed",
    "nearest_neighbour_accuracy",
    "neighbour_figures",
    "rauc",
    "subject_of_run",
    "subject_of_timm",
]
