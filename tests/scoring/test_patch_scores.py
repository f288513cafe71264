import math

import pytest
import torch

from scoring.patch_scores import masked_mean_score, patch_weighted_score


def test_hand_computed_weights():
    loss = torch.eye(4).unsqueeze(1).expand(4, 1, 4).reshape(4, 4)  # row i picks weight i
    predicted = torch.tensor([1, 0.5, 0.2, 0.9]).expand(4, 4)
    mask = torch.tensor([1, 0, 0, 1]).expand(4, 4)
    weights = patch_weighted_score(loss, predicted, mask)
    torch.testing.assert_close(weights, torch.tensor([0.731059, 0, 0, 0.268941]), atol=1e-6, rtol=0)


def test_constant_prediction_and_infinite_temperature_are_the_plain_mean():
    torch.manual_seed(0)
    loss, predicted, mask = torch.rand(8, 196), torch.rand(8, 196), torch.rand(8, 196) < 0.75
    plain = masked_mean_score(loss, mask)
    torch.testing.assert_close(patch_weighted_score(loss, torch.full_like(loss, 3.0), mask), plain)
    torch.testing.assert_close(patch_weighted_score(loss, predicted, mask, math.inf), plain)


def test_visible_patches_never_count_even_when_not_finite():
    loss = torch.tensor([[1.0, math.nan], [2.0, math.inf]])
    mask = torch.tensor([[1, 0], [1, 0]])
    torch.testing.assert_close(masked_mean_score(loss, mask), torch.tensor([1.0, 2.0]))
    loss[:, 1] = 7.0
    torch.testing.assert_close(patch_weighted_score(loss, loss, mask), torch.tensor([1.0, 2.0]))


def test_scores_carry_no_gradient_and_are_wide():
    loss = torch.rand(2, 4, requires_grad=True).bfloat16()
    score = patch_weighted_score(loss, loss, torch.ones(2, 4))
    assert score.dtype == torch.float32
    assert not score.requires_grad


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="share one shape"):
        masked_mean_score(torch.rand(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="temperature must be positive"):
        patch_weighted_score(torch.rand(2, 3), torch.rand(2, 3), torch.ones(2, 3), 0.0)
