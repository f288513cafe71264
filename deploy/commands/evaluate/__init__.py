"""`tempera eval` and `tempera export`: what an encoder is worth, ours or any of timm's; one JSON and one table each."""

from deploy.commands.evaluate.dense import detection, segmentation
from deploy.commands.evaluate.export import export
from deploy.commands.evaluate.frozen import fewshot, knn, linear
from deploy.commands.evaluate.trained import finetune, rauc

__all__ = ["detection", "export", "fewshot", "finetune", "knn", "linear", "rauc", "segmentation"]
