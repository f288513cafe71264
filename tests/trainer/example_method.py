"""A whole method in one file, as `trainer/README.md` prints it."""

from torch import Tensor, nn

from trainer import METHODS, Losses, Method, ModelConfig, StepRandomness
from trainer.masking import take
from trainer.methods.losses import masked_losses
from trainer.models.vit import Encoder, patchify


class MeanColour(Method):
    """Predict the mean colour of each hidden patch from its position and the class token of the visible ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.place = nn.Embedding(config.num_patches, config.width)
        self.head = nn.Linear(config.width, 3)

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        mask = self.draw_mask(len(patches_BNP), randomness, like=images_BCHW)
        tokens_BTD = self.encoder.encode_visible(patches_BNP, mask.visible_BV)
        colour_BM3 = self.head(tokens_BTD[:, :1] + self.place(mask.masked_BM))
        hidden_BMP = take(patches_BNP, mask.masked_BM)
        wanted_BM3 = hidden_BMP.view(*hidden_BMP.shape[:2], -1, 3).mean(dim=2)
        return masked_losses((colour_BM3 - wanted_BM3).square().mean(dim=-1), mask)


METHODS["mean_colour"] = MeanColour
