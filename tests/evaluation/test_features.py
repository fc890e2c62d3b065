"""`dune eval features`: scores of features with known answers, and the command on small folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli.cli import main
from dune_cli.errors import UserError
from dune_cli.evaluation.features import (
    FeatureSource,
    FeatureTokens,
    LabelledPhotos,
    knn,
    linear_probe,
    majority_class,
    open_feature_source,
    read_labelled_photos,
)
from dune_cli.evaluation.pairs import PosedPair
from dune_cli.evaluation.patch_matching import match_patches
from dune_cli.provenance import Source
from support.teacher_files import smooth_photo, write_teachers
from support.training_words import words


def dune_eval(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "features", *map(str, arguments)])


def blobs(spread: float, count: int = 40, seed: int = 0) -> tuple[torch.Tensor, LabelledPhotos]:
    """Three classes around three directions, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * count) % 3
    features = torch.eye(3, 16)[labels] + spread * torch.randn(3 * count, 16, generator=generator) + 50
    folds = torch.arange(3 * count) // 3 % 5
    return features, LabelledPhotos([Path()] * len(labels), labels, ["a", "b", "c"], folds, False)


def test_classes_that_lie_apart_are_told_and_noise_is_not() -> None:
    features, data = blobs(0.05)
    assert knn(features, data, 5).accuracy == 1 and linear_probe(features, data).accuracy == 1
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    for score in (knn(noise, data, 5), linear_probe(noise, data)):
        assert 0.15 < score.accuracy < 0.5 and score.photos == 120
        assert score.error == pytest.approx((score.accuracy * (1 - score.accuracy) / 120) ** 0.5)
    assert majority_class(data).accuracy == pytest.approx(1 / 3)


def test_no_photo_votes_for_itself_or_trains_its_own_probe() -> None:
    """Features that are each photo's own number: whoever sees the photo in training knows everything."""
    data = blobs(0.1)[1]
    own = torch.eye(120)
    assert knn(own, data, 1).accuracy < 0.6 and linear_probe(own, data).accuracy < 0.6


def test_a_folder_of_tests_is_kept_out_of_the_bank() -> None:
    features, data = blobs(0.05)
    split = (torch.arange(120) < 90).long()
    apart = LabelledPhotos(data.paths, data.labels, data.classes, split, True)
    assert knn(features, apart, 5).photos == 30 and knn(features, apart, 5).accuracy == 1
    assert linear_probe(features, apart).accuracy == 1
    swapped = features.clone()
    swapped[split == 0] = features[split == 0].roll(1, 0)  # test photos look like another class
    assert knn(swapped, apart, 5).accuracy == 0 and linear_probe(swapped, apart).accuracy == 0


def test_balanced_accuracy_weighs_classes_not_photos() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2)
    data = LabelledPhotos([Path()] * 10, labels, ["a", "b"], torch.zeros(10), False)
    assert majority_class(data).accuracy == pytest.approx(0.8) and majority_class(data).balanced == pytest.approx(0.5)


def colour_folder(root: Path) -> Path:
    """Two classes of photos: the same pictures in two tints."""
    for name, channel in (("red", 0), ("blue", 2)):
        (root / name).mkdir(parents=True)
        for seed in range(6):
            path = smooth_photo(root / name / f"{seed}.png", seed)
            pixels = np.array(Image.open(path))
            pixels[..., channel] //= 8
            Image.fromarray(pixels).save(path)
    return root


def test_reading_labelled_folders(tmp_path: Path) -> None:
    root = colour_folder(tmp_path / "all")
    data = read_labelled_photos(root, 0)
    assert data.classes == ["blue", "red"] and len(data.paths) == 12 and not data.has_test_folder
    assert all(set(data.split[data.labels == label].tolist()) == set(range(5)) for label in (0, 1))
    (tmp_path / "two").mkdir()
    for part in ("train", "val"):
        colour_folder(tmp_path / "two" / part)
    data = read_labelled_photos(tmp_path / "two", 0)
    assert data.has_test_folder and data.split.sum() == 12 and len(data.paths) == 24
    with pytest.raises(UserError, match="two sub-folders"):
        read_labelled_photos(root / "red", 0)
    with pytest.raises(UserError, match="is no folder"):
        read_labelled_photos(tmp_path / "none", 0)


def shifted_pair(tmp_path: Path) -> PosedPair:
    """A plane seen by a camera that moved sideways: the picture moves by 32 px, epipolar lines are the rows."""
    wide = Image.open(smooth_photo(tmp_path / "wide.png", 3, 160, 288))
    files = [tmp_path / "left.png", tmp_path / "right.png"]
    for file, left in zip(files, (0, 32)):
        wide.crop((left, 0, left + 256, 160)).save(file)
    K = np.array([[200.0, 0, 127.5], [0, 200, 79.5], [0, 0, 1]])
    pose = np.eye(4)
    pose[0, 3] = -0.5
    return PosedPair("shift", "0", *files, K, K, pose)


def test_patches_of_a_moved_picture_match_along_the_rows(tmp_path: Path) -> None:
    pair = shifted_pair(tmp_path)
    score = match_patches(open_feature_source("pixels", 256, 0, "cpu", "float32"), [pair], 256, [1, 40])
    assert score.near[1] > 0.9 and score.mutual > 0.7 and score.matches == pytest.approx(score.mutual * 160)
    assert score.random_near[1] == pytest.approx(0.1)  # one row of ten
    assert score.random_near[40] == pytest.approx((10 * 5 - 6) / 100)  # rows up to two away

    def noise(images: torch.Tensor) -> FeatureTokens:
        generator = torch.Generator().manual_seed(int(images.sum()))
        return FeatureTokens(
            torch.zeros(1, 8), torch.randn(1, images.shape[2] // 16, images.shape[3] // 16, 8, generator=generator)
        )

    assert match_patches(FeatureSource("noise", Source("none"), 16, noise), [pair], 256, [1]).near[1] < 0.4


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A distilled file, its `--teachers`, and photos."""
    folder = tmp_path_factory.mktemp("student")
    (folder / "photos").mkdir()
    for seed in range(6):
        smooth_photo(folder / "photos" / f"{seed}.png", seed)
    teachers = ",".join(text for text in write_teachers(folder).split(",") if not text.startswith("mast3r"))
    result = CliRunner().invoke(main, words(teachers, folder / "photos", folder / "run", "--steps", 2))
    assert result.exit_code == 0, result.output
    return folder / "run" / "student.safetensors", teachers, folder / "photos"


def test_the_command(student: tuple[Path, str, Path], tmp_path: Path) -> None:
    file, teachers, photos = student
    pair = shifted_pair(tmp_path)
    entry = {"id": "0", "image_a": "left.png", "image_b": "right.png", "K_a": pair.K1.tolist(), "K_b": pair.K2.tolist()}
    entry["T_a2b"] = pair.cam2_from_cam1.tolist()
    (tmp_path / "pairs.json").write_text(json.dumps({"name": "shift", "pairs": [entry]}))
    columns = f"{file},random:{file},random:vit:64x1,random:timm:resnet10t,teacher:{teachers.split(',')[0]},pixels"
    arguments = (
        "--model", columns, "--size", 56, "--pairs-size", 256, "--labelled", colour_folder(tmp_path / "classes"),
        "--photos", photos, "--teachers", teachers, "--pairs", tmp_path, "-o", tmp_path / "table.json",
    )  # fmt: skip
    result = dune_eval(*arguments)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["schema"] == "dune.eval-features/1" and len(content["columns"]) == 6
    rows = content["rows"]
    near = next(values for name, values in rows.items() if name.startswith("k-NN accuracy"))
    assert len(near) == 6 and all(0 <= value <= 1 for value in near)
    cosine = rows["multihmr patch: cosine"]
    assert cosine[0] is not None and cosine[1] is not None and cosine[2:] == [None] * 4
    assert rows["dinov2 cls: cosine of the mean feature"][0] > 0
    readout = rows["dinov2 patch: variance read out linearly"]
    assert len(readout) == 6 and all(value <= 1 for value in readout) and readout[4] > 0.99  # of itself
    assert rows["of them within 4 px of the line"][5] > 0.8
    assert "standard error" in result.stdout and str(file) in result.stdout
    again = dune_eval(*arguments[:-2], "--json")
    assert json.loads(again.stdout)["rows"] == rows  # the same every time


def test_random_columns_are_fresh_and_seeded(student: tuple[Path, str, Path]) -> None:
    image = torch.rand(1, 3, 56, 56)
    for spec in (f"random:{student[0]}", "random:vit:64x2", "random:dune-mini", "random:timm:resnet10t"):
        side = image if "mini" not in spec and "timm" not in spec else image[..., :48, :48]
        one, same, other = (open_feature_source(spec, 56, seed, "cpu", "float32").encode(side) for seed in (0, 0, 1))
        assert torch.equal(one.patches, same.patches) and not torch.equal(one.patches, other.patches)
    trained = open_feature_source(str(student[0]), 56, 0, "cpu", "float32").encode(image)
    assert not torch.allclose(
        trained.patches, open_feature_source(f"random:{student[0]}", 56, 0, "cpu", "float32").encode(image).patches
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to score"),
        (("--photos", "."), "belong together"),
        (("--labelled", "{photos}"), "two sub-folders"),
        (("--pairs", "{photos}"), "no pairs.json"),
    ],
)
def test_refusals(arguments: tuple[str, ...], says: str, student: tuple[Path, str, Path]) -> None:
    filled = [word.format(photos=student[2], teachers=student[1]) for word in arguments]
    result = dune_eval("--model", "pixels", *filled)
    assert result.exit_code == 2 and result.stderr.count("dune:") == 1 and says in result.stderr, result.output


def test_unknown_columns() -> None:
    for spec, says in (
        ("random:vit9", "unknown --student"),
        ("no_such.pth", "no such file"),
        ("teacher:x", "unknown teacher"),
    ):
        result = dune_eval("--model", spec, "--labelled", ".")
        assert result.exit_code == 2 and says in result.stderr
