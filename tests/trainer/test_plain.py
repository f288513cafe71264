import pytest
import torch
from trainer_fakes import tiny

from trainer import METHODS, StepRandomness, build_method
from trainer.bench.plain import PLAIN, plain_masker
from trainer.config import ConmimConfig
from trainer.masking import random_mask


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def losses(name, phase="model"):
    """Our loss and the plain one, with gradients, on the same random masks."""
    torch.manual_seed(0)
    config = tiny(image_size=64, patch_size=16, masking="random", conmim=ConmimConfig(hidden=16, projection=8))
    method = build_method(name, config).double()
    images = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    mask = random_mask(config, 4, StepRandomness(seed=0, step=0), like=images)
    if name == "conmim":
        ours = method.contrast(images, images, mask).total
    elif name == "clmae":
        ours = method(images, StepRandomness(seed=0, step=0), phase).total
    else:
        ours = method.reconstruct(images, mask).total
    plain = plain_masker if phase == "masker" else PLAIN[name]
    return method, ours, plain(method, images, torch.cat([mask.visible_BV, mask.masked_BM], dim=1))


def test_the_fast_form_has_the_loss_and_gradient_of_the_plain_one(name):
    method, ours, plain = losses(name)
    assert ours.item() == pytest.approx(plain.item(), abs=1e-9)
    pairs = list(method.phase_parameters("model"))
    grads = [torch.autograd.grad(loss, [p for _, p in pairs], allow_unused=True) for loss in (ours, plain)]
    for (key, _), left, right in zip(pairs, *grads, strict=True):
        assert (left is None) == (right is None), key
        assert left is None or torch.allclose(left, right, atol=1e-9), key


def test_the_maskers_step_has_the_loss_and_gradient_of_the_plain_one():
    method, ours, plain = losses("clmae", "masker")
    assert ours.item() == pytest.approx(plain.item(), abs=1e-9)
    parameters = [p for _, p in method.phase_parameters("masker")]
    for left, right in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert torch.allclose(left, right, atol=1e-9)
