"""Classes of whole photos against the names of their folders: `dune eval classify`.

A folder is called by a class name of the model, or of ImageNet's classes by a WordNet id. Controls: the most frequent
class, and chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dune_cli.errors import UserError
from dune_cli.io.photos import read_photo
from dune_cli.models.dinov2_heads import Classifier
from dune_cli.models.heads import HeadedEncoder
from dune_cli.tasks import classify as classify_task
from dune_cli.training.heads.datasets import Dataset, Example

MAJORITY, CHANCE = "majority class", "chance"
TOP = 5


@dataclass(frozen=True)
class ClassificationScore:
    """A method: shares of photos whose class is the first, or among the first five; mean of the first over classes."""

    method: str
    photos: int
    top1: float
    top5: float
    mean_over_classes: float


def class_numbers(model: Classifier | HeadedEncoder, folders: Sequence[str]) -> dict[str, int]:
    """The model's class number of each folder. UserError for a folder that is none of its classes."""
    names = list(getattr(model, "class_names", ()) or ())
    known = {name.casefold(): number for number, name in enumerate(names)}
    if not names and model.classes == classify_task.IMAGENET_CLASSES:
        for number, (wordnet_id, name) in enumerate(classify_task.imagenet_names() or []):
            known[wordnet_id] = number
            for part in name.split(","):
                known.setdefault(part.strip().casefold(), number)
    unknown = [folder for folder in folders if folder.casefold() not in known]
    if unknown:
        raise UserError(
            f"the folder {unknown[0]} is no class of {model.source.name}; its classes: "
            f"{', '.join(names[:5]) or 'of ImageNet, by name or WordNet id'}{', ...' if len(names) > 5 else ''}"
        )
    return {folder: known[folder.casefold()] for folder in folders}


def rank_photos(
    dataset: Dataset, models: Mapping[str, Classifier | HeadedEncoder]
) -> Iterator[tuple[Example, dict[str, bool], dict[str, bool]]]:
    """Of each photo and model: whether its class is the first, and whether it is among the first five."""
    numbers = {name: class_numbers(model, dataset.classes) for name, model in models.items()}
    for example in dataset.examples:
        photo = read_photo(example.photo)
        folder = dataset.classes[int(example.label)]
        first, five = {}, {}
        for name, model in models.items():
            with torch.inference_mode():
                found = [score.index for score in classify_task.predict(model, photo, TOP)]
            first[name] = found[0] == numbers[name][folder]
            five[name] = numbers[name][folder] in found
        yield example, first, five


def total_scores(
    dataset: Dataset, ranked: Sequence[tuple[Example, Mapping[str, bool], Mapping[str, bool]]]
) -> list[ClassificationScore]:
    """The controls, then the models."""
    labels = [int(example.label) for example, _, _ in ranked]
    counts, classes = Counter(labels), len(dataset.classes)
    common = [number for number, _ in counts.most_common(TOP)]
    scores = [
        ClassificationScore(CHANCE, len(ranked), 1 / classes, min(1.0, TOP / classes), 1 / classes),
        ClassificationScore(
            MAJORITY,
            len(ranked),
            counts[common[0]] / len(ranked),
            sum(counts[number] for number in common) / len(ranked),
            1 / len(counts),
        ),
    ]
    for name in ranked[0][1] if ranked else ():
        first = np.array([one[name] for _, one, _ in ranked])
        five = np.array([all_five[name] for _, _, all_five in ranked])
        by_class = [first[np.array(labels) == number].mean() for number in counts]
        scores.append(
            ClassificationScore(name, len(ranked), float(first.mean()), float(five.mean()), float(np.mean(by_class)))
        )
    return scores
