import ast
import inspect
import json
from dataclasses import asdict, fields, is_dataclass

import pytest
from trainer_fakes import tiny, tiny_run

import trainer.config
import trainer.method_config
from trainer import METHODS, ModelConfig, TrainConfig, build_method, from_dict, model_size
from trainer.config import ClmaeConfig, ConmimConfig, MtoConfig, PassConfig, SwinConfig


def test_a_config_survives_json():
    config = tiny_run(
        model=tiny(
            mto=MtoConfig(enabled=True),
            swin=SwinConfig(depths=(1, 2), heads=(1, 1)),
            pass_=PassConfig(keep=0.5),
        ),
        betas=(0.8, 0.9),
        milestones=(0.5, 0.75),
    )
    assert from_dict(TrainConfig, json.loads(json.dumps(asdict(config)))) == config
    assert hash(from_dict(TrainConfig, json.loads(json.dumps(asdict(config))))) == hash(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model_size("vit_bb"), r"model size must be one of .*got 'vit_bb'\. Did you mean 'vit_b'\?"),
        (
            lambda: model_size("tiny", dept=3),
            r"a field of ModelConfig must be one of .*got 'dept'\. Did you mean 'depth'\?",
        ),
        (
            lambda: from_dict(TrainConfig, {"model": {"mto": {"enabld": True}}}),
            r"a field of MtoConfig .*mean 'enabled'",
        ),
        (
            lambda: ModelConfig(image_size=225),
            r"image_size must be a multiple of patch_size \(16\); got 225\. Try 224\.",
        ),
        (
            lambda: ModelConfig(image_size=32, patch_size=16, mask_ratio=0.9),
            r"leave at least one visible .*leaves 0 visible",
        ),
        (lambda: ModelConfig(mask_ratio=1.0), r"mask_ratio must be in \(0, 1\); got 1\.0"),
        (lambda: ModelConfig(width=100), r"width must be a multiple of heads \(12\); got 100"),
        (lambda: ModelConfig(decoder_width=50), r"decoder_width must be a multiple of decoder_heads"),
        (lambda: TrainConfig(total_steps=0, global_batch=1), "total_steps must be 1 or more; got 0"),
        (
            lambda: TrainConfig(total_steps=5, global_batch=1, warmup_steps=5),
            r"warmup_steps must be below total_steps \(5\)",
        ),
        (lambda: TrainConfig(total_steps=5, global_batch=1, base_lr=0), "base_lr must be above 0"),
        (lambda: TrainConfig(total_steps=5, global_batch=1, std=(1, 0, 1)), "std must be above 0 in every channel"),
        (lambda: TrainConfig(total_steps=5, global_batch=1, layer_decay=0), r"layer_decay must be in \(0, 1\]"),
        (lambda: ClmaeConfig(masker_every=0), r"clmae\.masker_every must be 1 step or more"),
        (lambda: ConmimConfig(temperature=0), r"conmim\.temperature must be above 0"),
        (lambda: PassConfig(period=2), r"predictor_epochs must be within one period \(2 epochs\); got 3"),
        (lambda: SwinConfig(depths=(1,)), "swin depths and heads must have one entry a stage; got 1 and 4"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_tiny_size(name):
    build_method(name, model_size("tiny"))


@pytest.mark.parametrize("module", [trainer.config, trainer.method_config], ids=["config", "method_config"])
def test_every_field_has_a_docstring(module):

    tree = ast.parse(inspect.getsource(module))
    for node in tree.body:
        if not (isinstance(node, ast.ClassDef) and is_dataclass(getattr(module, node.name))):
            continue
        documented = {
            before.target.id
            for before, after in zip(node.body, node.body[1:], strict=False)
            if isinstance(before, ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        }
        assert documented == {field.name for field in fields(getattr(module, node.name))}
