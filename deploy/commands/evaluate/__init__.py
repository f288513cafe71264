"""`tempera eval` and `tempera export`: evaluate or write the encoder of a run, of an official checkpoint or of timm."""

from deploy.commands.evaluate.frozen import fewshot, knn, linear
from deploy.commands.evaluate.runs import export, rauc
from deploy.commands.evaluate.trained import detection, finetune, segmentation

__all__ = ["detection", "export", "fewshot", "finetune", "knn", "linear", "rauc", "segmentation"]
