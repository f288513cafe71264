"""`tempera eval` and `tempera export`: what an encoder is worth, of a run, an official checkpoint or timm."""

from deploy.commands.evaluate.frozen import fewshot, knn, linear
from deploy.commands.evaluate.runs import export, rauc
from deploy.commands.evaluate.trained import detection, finetune, segmentation

__all__ = ["detection", "export", "fewshot", "finetune", "knn", "linear", "rauc", "segmentation"]
