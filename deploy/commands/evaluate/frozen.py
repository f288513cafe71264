"""`tempera eval knn|linear|fewshot`: evaluations of a frozen encoder."""

from __future__ import annotations

from typing import Any, Literal

from deploy.commands.evaluate.target import NEWEST_RUN, OWN_IMAGES, EncoderArg, ImagesArg, RecipeSettings
from deploy.console import Answer, progress_bar, table, working


def knn(
    encoder: EncoderArg = NEWEST_RUN,
    images: ImagesArg = OWN_IMAGES,
    *,
    backend: Literal["torch", "faiss"] = "torch",
    pixels: bool = True,
) -> Answer:
    """Classify by nearest neighbours: 1-NN by cosine (class token, mean of patches), weighted 20-NN, CL-MAE's protocol.

    Args:
        images: which images; without test images each training image is classified by the others.
        backend: exact search by torch or by faiss.
        pixels: measure raw pixels too, on at most 5,000 images: the floor to beat.
    """
    from trainer.evaluate.data import LabelledShards
    from trainer.evaluate.features import Extractor
    from trainer.evaluate.knn import PROTOCOLS, memory_bytes, neighbour_figures

    pretrained, device = encoder.load(), encoder.torch_device()
    paths = images.paths(encoder)
    extractor = Extractor(pretrained, device)
    found = []
    for path in (path for path in paths if path is not None):
        with progress_bar(f"features of {path}") as advance:
            found.append(extractor.extract(LabelledShards(path, most=images.most), ("cls", "mean"), progress=advance))
    gallery, test, alone = found[0], found[-1], len(found) == 1
    data: dict[str, Any] = {"encoder": pretrained.name}
    data |= {"images": len(gallery["cls"].labels), "tested": len(test["cls"].labels)}
    for name, rule in PROTOCOLS.items():
        with progress_bar(f"neighbours: {name}") as advance:
            figures = neighbour_figures(
                rule,
                gallery[rule.pool],
                test[rule.pool],
                exclude_self=alone,
                device=str(device),
                backend=backend,
                progress=advance,
            )
        # metrics.jsonl calls the nearest neighbour of the class token nn_cls.
        data["nn_cls" if name == "nn" else name] = figures["acc1"]
        if name == "clmae":
            data["clmae_any_of_5"] = figures["any_k"]
    data["memory_bytes"] = memory_bytes(len(test["cls"].labels), *gallery["cls"].values.shape)
    if pixels:
        from deploy.launch.evaluation import NearestNeighbourProbe

        with working("neighbours of raw pixels"):
            data["nn_pixels"] = NearestNeighbourProbe(paths[0], paths[1], size=pretrained.image_size).pixels()
    return encoder.answer("knn", f"nearest neighbours of {pretrained.name}", data)


def linear(
    encoder: EncoderArg = NEWEST_RUN,
    images: ImagesArg = OWN_IMAGES,
    *,
    recipe: str = "mae",
    set: RecipeSettings = (),
) -> Answer:
    """Train a linear classifier on frozen features by MAE's or BootMAE's recipe; an interrupted one is continued.

    Args:
        recipe: mae, mae_l, bootmae, clmae, or cached: MAE's without augmentation, with features computed once.
    """
    from deploy.runs.overrides import override
    from trainer.config import choose
    from trainer.evaluate.linear import linear_probe
    from trainer.evaluate.recipes import LINEAR

    config = override(choose(recipe, LINEAR, "recipe"), set)
    train, test = images.both(encoder)
    pretrained, device = encoder.load(), encoder.torch_device()
    directory = encoder.folder() / f"linear-{recipe}"
    with progress_bar(f"linear probe ({recipe})") as advance:
        figures = linear_probe(pretrained, train, test, config, device=device, directory=directory, progress=advance)
    data = {"encoder": pretrained.name, "recipe": recipe, "bad_images": len(train.bad) + len(test.bad), **figures}
    return encoder.answer("linear", f"linear probe of {pretrained.name}", data)


def fewshot(
    encoder: EncoderArg = NEWEST_RUN,
    images: ImagesArg = OWN_IMAGES,
    *,
    shots: tuple[int, ...] = (1, 2, 4, 5, 8, 16),
    draws: int = 3,
    classifier: Literal["logistic", "lars"] = "logistic",
    pool: Literal["cls", "mean"] = "cls",
    seed: int = 0,
) -> Answer:
    """Classify from few labelled images a class: accuracy by number of shots, mean and deviation over draws.

    Args:
        shots: labelled images a class.
        draws: draws for each number of shots.
        classifier: logistic regression, cross-validated inside a draw, or CL-MAE's linear probe.
        pool: the class token, or the mean of the patch tokens.
        seed: seed of the draws.
    """
    from trainer.evaluate.features import Extractor
    from trainer.evaluate.fewshot import FewShotConfig, few_shot

    config = FewShotConfig(shots=shots, draws=draws, classifier=classifier, seed=seed)
    pretrained = encoder.load()
    extractor = Extractor(pretrained, encoder.torch_device())
    found = []
    for shards in images.both(encoder):
        with progress_bar(f"features of {shards.path}") as advance:
            found.append(extractor.extract(shards, (pool,), progress=advance)[pool])
    with progress_bar("draws") as advance:
        rows = few_shot(found[0], found[1], config, progress=advance)
    data = {"encoder": pretrained.name, "classifier": classifier, "pool": pool, "shots": rows}
    title = f"few shots, {pretrained.name}, {draws} draws"
    view = table(title, list(rows[0]), [list(row.values()) for row in rows])
    return encoder.answer("fewshot", title, data, view)
