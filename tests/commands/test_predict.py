"""`dune predict`: the single verbs' files byte for byte, and as many encoder passes as it says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli.cli import main
from dune_cli.models import vit
from dune_cli.models.shared_backbone import SharedBackbone, SharedBackboneSlot, same_weights, share
from support.dinov2_head_files import write_head
from support.human_files import ANNY, SMPLX, official_tree, small_state, write_smplx

SIDE = 112  # 8 x 8 cells
CPU = ("--device", "cpu", "--dtype", "float32")
FILES = {
    "depth": "depth.png",
    "human": "people.obj",
    "features": "features.npz",
    "classes": "classes.json",
    "segmentation": "segmentation.png",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small ViT as a DINOv2 encoder with a depth head, and inside two human files; another ViT besides."""
    folder = tmp_path_factory.mktemp("one-encoder")
    for name in (ANNY, SMPLX):
        state = small_state(name)
        torch.save(official_tree(name, state, xat_depth=3, img_size=SIDE if name == ANNY else [SIDE]), folder / name)
        prefix = "encoder.backbone." if name == ANNY else "backbone.encoder."
        backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save(backbone, folder / f"encoder_of_{name}.pth")
    write_head(folder, "a_nyu_head", 128, "linear", "nyu")
    write_smplx(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    coffee = Image.open(Path(__file__).parents[2] / "examples" / "photos" / "coffee.png").convert("RGB")
    coffee.crop((100, 0, 500, 400)).resize((SIDE, SIDE)).save(folder / "square.png")
    coffee.resize((180, 120)).save(folder / "landscape.png")
    coffee.resize((97, 151)).save(folder / "odd.png")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def predict(weights: Path, photo: Path, out: Path, *more: str, human: str = ANNY) -> dict[str, Any]:
    encoder = weights / f"encoder_of_{human}.pth"
    models: tuple[object, ...] = ("--model", f"depth={weights / 'a_nyu_head.pth'}")
    if "human" in more[1]:
        models += ("--model", f"human={weights / human}")
    words = ("--encoder", encoder, *models, "--body-models", weights, "--min-score", 0.2, *CPU, "-o", out, "--json")
    result = run("predict", photo, *words, *more)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads((out / photo.stem / "predict.json").read_text()) == report
    return report


def single_verbs_agree(report: dict[str, Any], folder: Path, again: Path) -> None:
    """Runs the commands that the report names and compares the files, and the JSONs without their provenance."""
    for name, task in report["tasks"].items():
        words = shlex.split(task["same_as"])
        words[words.index("-o") + 1] = str(again / FILES[name])
        assert run(*words[1:]).exit_code == 0
        if name != "classes":  # which is a JSON with its provenance
            assert (again / FILES[name]).read_bytes() == (folder / FILES[name]).read_bytes(), name
        one, two = (json.loads((at / task["json"]).read_text()) for at in (folder, again))
        assert one.pop("provenance")["models"] == two.pop("provenance")["models"]
        assert one == two, name


@pytest.mark.parametrize("human", [ANNY, SMPLX])
def test_three_tasks_on_one_encoder_take_one_pass(weights: Path, photos: Path, tmp_path: Path, human: str) -> None:
    report = predict(weights, photos / "square.png", tmp_path, "--tasks", "depth,human,features", human=human)
    assert (report["schema"], report["encoder_passes"]) == ("dune.predict/1", 1)
    assert report["encoders"] == [{"tasks": ["depth", "human", "features"], "passes": 1}]
    assert len(json.loads((tmp_path / "square" / "people.json").read_text())["people"]) > 0
    single_verbs_agree(report, tmp_path / "square", tmp_path / "again")


@pytest.mark.parametrize("order", ["features,depth,human", "human,features,depth"])
def test_the_order_of_the_tasks_changes_nothing(weights: Path, photos: Path, tmp_path: Path, order: str) -> None:
    report = predict(weights, photos / "square.png", tmp_path, "--tasks", order)
    assert report["encoder_passes"] == 1
    single_verbs_agree(report, tmp_path / "square", tmp_path / "again")


def test_depth_and_features_share_a_size_where_the_photo_allows_it(weights: Path, photos: Path, tmp_path: Path) -> None:
    report = predict(weights, photos / "landscape.png", tmp_path, "--tasks", "depth,features,human")
    # 168 x 112 are whole patches, 180 x 120 are not; the human head has its own square
    assert report["encoder_passes"] == 2
    assert {"tasks": ["depth", "features", "human"], "passes": 2} in report["encoders"]
    network = json.loads((tmp_path / "landscape" / "features.json").read_text())["network"]
    assert (network["width"], network["height"]) == (168, 112)
    single_verbs_agree(report, tmp_path / "landscape", tmp_path / "again")


def test_without_a_common_size_each_task_has_its_own(weights: Path, photos: Path, tmp_path: Path) -> None:
    report = predict(weights, photos / "odd.png", tmp_path, "--tasks", "depth,features")
    assert report["encoder_passes"] == 2
    assert all("--size" not in task["same_as"] for task in report["tasks"].values())
    single_verbs_agree(report, tmp_path / "odd", tmp_path / "again")


def test_a_given_size_holds(weights: Path, photos: Path, tmp_path: Path) -> None:
    report = predict(weights, photos / "landscape.png", tmp_path, "--tasks", "depth,features", "--size", "84")
    assert report["encoder_passes"] == 1  # 84 x 56
    single_verbs_agree(report, tmp_path / "landscape", tmp_path / "again")


def test_another_encoder_is_not_shared(weights: Path, photos: Path, tmp_path: Path) -> None:
    more = ("--tasks", "depth,features", "--model", f"features={weights / f'encoder_of_{SMPLX}.pth'}")
    report = predict(weights, photos / "square.png", tmp_path, *more)
    assert report["encoders"] == [{"tasks": ["depth"], "passes": 1}, {"tasks": ["features"], "passes": 1}]
    assert report["encoder_passes"] == 2
    single_verbs_agree(report, tmp_path / "square", tmp_path / "again")


def test_a_folder_gets_a_folder_for_each_photo(weights: Path, photos: Path, tmp_path: Path) -> None:
    words = ("--tasks", "features", "--encoder", weights / f"encoder_of_{ANNY}.pth", *CPU)
    result = run("predict", photos, *words, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    written = [Path(line) for line in result.stdout.splitlines()]
    assert [path.parent.name for path in written[::2]] == ["landscape", "odd", "square"]
    assert all(path.is_file() for path in written)
    assert "square.png: 1 task, 1 encoder pass" in result.stderr
    again = run("predict", photos, *words, "-o", tmp_path / "out")
    assert again.exit_code == 2 and "--overwrite" in again.output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--tasks", "depht"], "depht is no task; allowed: classes, depth, features, human, segmentation"),
        (["--tasks", ","], "nothing is no task"),
        (["--tasks", "depth", "--model", "head.pth"], "is not TASK=NAME|FILE"),
        (["--tasks", "depth", "--model", "human=x"], "for a task that --tasks does not name"),
        (["--tasks", "depth", "--model", "depth=x", "--model", "depth=y"], "given twice"),
    ],
)
def test_what_is_refused(photos: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run("predict", photos / "square.png", *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["odd", "landscape"])
def test_bundled_heads_share_the_bundled_encoder(photos: Path, tmp_path: Path, name: str) -> None:
    """Nothing is named and nothing was downloaded: one pass of dune-mini serves all tasks that are run by default."""
    result = run("predict", photos / f"{name}.png", *CPU, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / name / "predict.json").read_text())
    assert report["encoders"] == [{"tasks": ["depth", "segmentation", "classes", "features"], "passes": 1}]
    single_verbs_agree(report, tmp_path / "out" / name, tmp_path / "again")


def test_a_wrong_file_for_a_task_is_told(weights: Path, photos: Path, tmp_path: Path) -> None:
    encoder = weights / f"encoder_of_{ANNY}.pth"
    more = ("--tasks", "human", "--model", f"human={encoder}", *CPU)
    result = run("predict", photos / "square.png", *more, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "not a human model" in result.stderr
    assert not (tmp_path / "out").exists()


def small_vit(seed: int) -> vit.VisionTransformer:
    torch.manual_seed(seed)
    config = vit.VitConfig(32, 4, 2, 64, 14, 2, 5, "offset")
    network = vit.VisionTransformer(config).eval()
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return network.requires_grad_(False)


def test_the_shared_trunk_answers_as_the_vit_does() -> None:
    network, images = small_vit(0), torch.rand(2, 3, 70, 56)
    trunk = SharedBackbone(network, (0, 2))
    for norm in (True, False):
        for asked, own in zip(
            trunk.intermediate(images, (2, 0, -1), norm), network.intermediate(images, (2, 0, 3), norm)
        ):
            assert torch.equal(asked.cls, own.cls) and torch.equal(asked.registers, own.registers)
            assert torch.equal(asked.patches, own.patches) and asked.grid == own.grid
        assert torch.equal(trunk(images, norm).patches, network(images, norm).patches)
    assert trunk.passes == 1
    trunk(images + 0.01)
    trunk(images)
    assert trunk.passes == 3
    with pytest.raises(ValueError, match="are kept"):
        trunk.intermediate(images, (1,))


def test_only_equal_weights_are_shared() -> None:
    one, same, other = small_vit(0), small_vit(0), small_vit(0)
    other.norm.bias.data[3] += np.finfo(np.float32).eps
    assert same_weights(one, same) and not same_weights(one, other)
    assert not same_weights(one, small_vit(0).double())
    holders = [torch.nn.Module() for _ in range(3)]
    for holder, network in zip(holders, (one, same, other)):
        holder.encoder = network
    trunks = share([SharedBackboneSlot(name, holder, "encoder", (1,)) for name, holder in zip("abc", holders)])
    assert trunks["a"] is trunks["b"] is holders[1].encoder and trunks["c"] is not trunks["a"]
