"""Evaluations of a frozen encoder: nearest neighbours, linear probes, few shots."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from tyro.conf import arg

from deploy.commands.evaluate.target import OWN_ENCODER, OWN_IMAGES, Encoder, Images, changed
from deploy.console import Answer, progress_bar, table, working

What = Annotated[Encoder, arg(name="")]
Where = Annotated[Images, arg(name="")]


def knn(
    what: What = OWN_ENCODER,
    images: Where = OWN_IMAGES,
    *,
    backend: Literal["torch", "faiss"] = "torch",
    pixels: bool = True,
) -> Answer:
    """Nearest neighbours: 1-NN by cosine (class token, mean of patches), 20-NN weighted, and CL-MAE's protocol.

    Args:
        what: the encoder.
        images: the images; without test images each training image is classified by the others.
        backend: exact search by torch or by faiss.
        pixels: measure raw pixels too, on at most 5,000 images: the floor to beat.
    """
    from trainer.evaluate.data import LabelledShards
    from trainer.evaluate.features import Extractor
    from trainer.evaluate.knn import POOLS_NEEDED, PROTOCOLS, memory_bytes, neighbour_figures

    pretrained, device = what.load(), what.place()
    paths = images.paths(what)
    extractor = Extractor(pretrained, device)
    found = []
    for path in (path for path in paths if path is not None):
        with progress_bar(f"features of {path}") as advance:
            found.append(extractor.extract(LabelledShards(path, most=images.most), POOLS_NEEDED, progress=advance))
    gallery, test, alone = found[0], found[-1], len(found) == 1
    data: dict[str, Any] = {
        "encoder": pretrained.name,
        "images": len(gallery["cls"].labels),
        "tested": len(test["cls"].labels),
    }
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
        data[{"nn": "nn_cls"}.get(name, name)] = figures["acc1"]
        if name == "clmae":
            data["clmae_any_of_5"] = figures["any_k"]
    data["memory_bytes"] = memory_bytes(len(test["cls"].labels), *gallery["cls"].values.shape)
    if pixels:
        from deploy.launch.probe import NearestNeighbourProbe

        with working("neighbours of raw pixels"):
            data["nn_pixels"] = NearestNeighbourProbe(paths[0], paths[1], size=pretrained.image_size).pixels()
    return answer(what, "knn", f"nearest neighbours of {pretrained.name}", data)


def linear(
    what: What = OWN_ENCODER,
    images: Where = OWN_IMAGES,
    *,
    recipe: str = "mae",
    set: tuple[str, ...] = (),
) -> Answer:
    """A linear classifier on frozen features, by the recipe of MAE or BootMAE; an interrupted one is continued.

    Args:
        what: the encoder.
        images: the images.
        recipe: mae, mae_l, bootmae, clmae, or cached: MAE's without augmentation, whose features are computed once.
        set: fields of the recipe to change, as in --set epochs=20 batch=512.
    """
    from trainer.config import choose
    from trainer.evaluate.linear import LINEAR, linear_probe

    config = changed(choose(recipe, LINEAR, "recipe"), set)
    train, test = images.both(what)
    pretrained = what.load()
    with progress_bar(f"linear probe ({recipe})") as advance:
        figures = linear_probe(
            pretrained,
            train,
            test,
            config,
            device=what.place(),
            directory=what.folder() / f"linear-{recipe}",
            progress=advance,
        )
    data = {"encoder": pretrained.name, "recipe": recipe, "bad_images": len(train.bad) + len(test.bad), **figures}
    return answer(what, "linear", f"linear probe of {pretrained.name}", data)


def fewshot(
    what: What = OWN_ENCODER,
    images: Where = OWN_IMAGES,
    *,
    shots: tuple[int, ...] = (1, 2, 4, 5, 8, 16),
    draws: int = 3,
    classifier: Literal["logistic", "lars"] = "logistic",
    pool: Literal["cls", "mean"] = "cls",
    seed: int = 0,
) -> Answer:
    """Few labelled images a class: accuracy by number of shots, mean and standard deviation over draws.

    Args:
        what: the encoder.
        images: the images.
        shots: labelled images a class.
        draws: draws for each number of shots.
        classifier: logistic regression, cross-validated inside a draw, or CL-MAE's linear probe.
        pool: the class token, or the mean of the patch tokens.
        seed: of the draws.
    """
    from trainer.evaluate.features import Extractor
    from trainer.evaluate.fewshot import FewShotConfig, few_shot

    config = FewShotConfig(shots=shots, draws=draws, classifier=classifier, seed=seed)
    extractor = Extractor(what.load(), what.place())
    found = []
    for shards in images.both(what):
        with progress_bar(f"features of {shards.path}") as advance:
            found.append(extractor.extract(shards, (pool,), progress=advance)[pool])
    with progress_bar("draws") as advance:
        rows = few_shot(found[0], found[1], config, progress=advance)
    data = what.keep(
        "fewshot", {"encoder": extractor.pretrained.name, "classifier": classifier, "pool": pool, "shots": rows}
    )
    title = f"few shots, {extractor.pretrained.name}, {draws} draws"
    return Answer(data=data, view=table(title, list(rows[0]), [list(row.values()) for row in rows]))


def answer(what: Encoder, name: str, title: str, data: dict[str, Any]) -> Answer:
    """Keep the figures and show those that are single values."""
    kept = what.keep(name, data)
    rows = [(key, value) for key, value in kept.items() if not isinstance(value, list | dict)]
    return Answer(data=kept, view=table(title, ("", ""), rows))
