"""Classes of photos: the published preparation, the names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dune_cli.io.photos import Photo
from dune_cli.tasks import classify as task


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (100, 100), (257, 256), (16, 400)])
def test_the_preparation_is_torchvisions(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    published = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
        ]
    )
    assert np.array_equal(task.prepare(rgb), published(Image.fromarray(rgb)).numpy())


def test_names_are_those_that_timm_gives() -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names = task.imagenet_names()
    assert names is not None
    assert names[281] == ("n02123045", "tabby, tabby cat")
    assert names == [(info.index_to_label_name(i), info.index_to_description(i)) for i in range(1000)]


class Fixed(nn.Module):
    """A classifier that has made up its mind."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.classes = logits, len(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape == (1, 3, 224, 224)
        return self.logits[None]


@pytest.mark.parametrize("classes", [1000, 7])
def test_best_first_with_probabilities(classes: int) -> None:
    logits = torch.linspace(-3, 3, classes)
    photo = Photo(Path("p.png"), np.zeros((20, 30, 3), np.uint8), "0" * 64)
    best = task.predict(Fixed(logits), photo, 5)
    assert [score.index for score in best] == list(range(classes - 1, classes - 6, -1))
    assert [score.score for score in best] == pytest.approx(logits.softmax(0).flip(0)[:5].tolist())
    assert best[0].name == ("toilet tissue, toilet paper, bathroom tissue" if classes == 1000 else None)
    document = task.document(photo, best, {})
    assert (document["names_from"] is None) == (classes == 7)
    assert len(task.predict(Fixed(logits), photo, 5000)) == classes
