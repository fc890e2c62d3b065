"""Small real trainings of heads: they learn, go on exactly after a kill, and refuse what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dune_cli.checkpoints.loader import load_encoder, load_head
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.provenance import sha256_of
from dune_cli.training.heads import optimise, trainer
from dune_cli.training.heads.config import HeadTrainingConfig
from dune_cli.training.heads.finalize import finish
from support.labelled_photos import write_class_set, write_depth_set, write_mask_set
from support.small_encoders import write_small_mini

SMALL = {
    "size_px": 48,
    "views": 2,
    "steps": 30,
    "batch_size": 4,
    "widths": (16, 8, 8),
    "evaluate_every": 5,
    "log_every": 5,
    "learning_rate": 3e-3,
    "average": 0.8,
    "held_out_fraction": 0.3,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_mini(tmp_path_factory.mktemp("encoder") / "mini.safetensors")


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_depth_set(tmp_path_factory.mktemp("depth"))


def settings(task: str, encoder: Path, data: Path, **changes: object) -> HeadTrainingConfig:
    return HeadTrainingConfig(task, str(encoder), (str(data),), **{**SMALL, **changes})


def weights(trained: trainer.TrainedHead) -> dict[str, torch.Tensor]:
    return trained.head.state_dict()


def test_a_depth_head_learns_and_its_file_says_what_it_is(encoder: Path, depth_set: Path, tmp_path: Path) -> None:
    trained = trainer.train(settings("depth", encoder, depth_set, steps=80), tmp_path / "run")
    done = finish(trained, tmp_path / "run")
    log = done.document["log"]
    assert log[-1]["validation"] < 0.7 * log[0]["validation"]
    scores = done.document["held_out"]["room"]
    assert scores["affine abs_rel"] < 0.25 and {"raw abs_rel", "affine delta1"} <= scores.keys()
    page = done.report_html.read_text()
    assert "Held-out photos" in page and "<svg" in page and "data:image/png" in page

    with pytest.raises(WeightsMissing, match=r"needs its encoder mini\.safetensors, which is not beside it"):
        load_head(done.head_half, "depth", device="cpu")
    model = load_head(done.head_half, "depth", encoder, "cpu")
    assert model.card.encoder_sha256 == sha256_of(encoder)
    assert model.card.data == ("room: 5 photos",)
    assert torch.tensor(model.card.measured["mean_log_depth"]).shape == (12, 16)
    with torch.inference_mode():
        assert torch.isfinite(model.log_depth(torch.rand(1, 3, 48, 64), 60.0)).all()
    other = write_small_mini(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(CheckpointError, match=r"was trained on the encoder mini\.safetensors .* give that encoder"):
        load_head(done.head, "depth", other, "cpu")
    with pytest.raises(CheckpointError, match=r"it holds a head for depth, not for segmentation; dune depth takes it"):
        load_head(done.head, "segmentation", encoder, "cpu")


class KilledError(Exception):
    pass


@pytest.mark.parametrize("tune", [False, True], ids=["frozen", "tuned"])
def test_a_killed_run_goes_on_to_the_same_weights(
    encoder: Path, depth_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: bool
) -> None:
    config = settings("depth", encoder, depth_set, steps=10, tune=tune, checkpoint_minutes=0.0)
    whole = trainer.train(config, tmp_path / "whole")
    update = optimise.update_average
    steps = []

    def killed(*arguments: object) -> None:
        steps.append(1)
        if len(steps) == 7:
            raise KilledError
        update(*arguments)

    monkeypatch.setattr(optimise, "update_average", killed)
    with pytest.raises(KilledError):
        trainer.train(config, tmp_path / "killed")
    monkeypatch.setattr(optimise, "update_average", update)
    resumed = trainer.train(config, tmp_path / "killed")
    assert resumed.best_step == whole.best_step and resumed.best_loss == whole.best_loss
    assert all(torch.equal(value, weights(resumed)[key]) for key, value in weights(whole).items())
    if tune:
        start, end = load_encoder(encoder, "cpu").vit.state_dict(), whole.encoder.state_dict()
        assert not torch.equal(start["norm.weight"], end["norm.weight"])
        assert all(torch.equal(value, resumed.encoder.state_dict()[key]) for key, value in end.items())
        file = finish(whole, tmp_path / "whole").head
        model = load_head(file, "depth", encoder, "cpu")
        assert torch.equal(model.encoder.state_dict()["norm.weight"], end["norm.weight"])
        assert model.encoder.source.sha256 is None


def test_a_run_stops_early_and_stays_stopped(encoder: Path, depth_set: Path, tmp_path: Path) -> None:
    config = settings("depth", encoder, depth_set, learning_rate=1.0, steps=400, patience=1)
    trained = trainer.train(config, tmp_path)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert int(steps[-1][5:]) < 400
    again = trainer.train(config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == steps
    assert again.best_step == trained.best_step


def test_a_segmentation_head_learns(encoder: Path, tmp_path: Path) -> None:
    data = write_mask_set(tmp_path / "data")
    trained = trainer.train(settings("segmentation", encoder, data), tmp_path / "run")
    scores = finish(trained, tmp_path / "run").document["held_out"]
    assert scores["mean_iou"] > scores["majority_mean_iou"] + 0.1
    assert list(scores["iou"]) == ["ground", "thing"]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_classification_head_learns(encoder: Path, tmp_path: Path, kind: str) -> None:
    data = write_class_set(tmp_path / "data")
    trained = trainer.train(settings("classification", encoder, data, kind=kind), tmp_path / "run")
    done = finish(trained, tmp_path / "run")
    assert done.document["held_out"]["top1"] >= 0.8
    assert "Confusion" in done.report_html.read_text()
    assert done.document["classes"] == ["blue", "red"]


def test_what_does_not_fit_is_refused_in_one_sentence(encoder: Path, depth_set: Path, tmp_path: Path) -> None:
    config = settings("depth", encoder, depth_set, steps=5)
    trainer.train(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"holds a run with other settings \(views: 2 → 3\)"):
        trainer.train(replace(config, views=3), tmp_path / "run")
    other = write_small_mini(tmp_path / "other.safetensors", seed=1)
    other.replace(moved := tmp_path / "mini.safetensors")
    with pytest.raises(UserError, match=r"other settings \(encoder: "):
        trainer.train(replace(config, encoder=str(moved)), tmp_path / "run")
    with pytest.raises(UserError, match=r"--features: 'tokens9'|--features: block 9 was asked for"):
        trainer.train(replace(config, features=("tokens9",)), tmp_path / "other")
    with pytest.raises(UserError, match=r"--weight attic is no set of the data; it has: room"):
        trainer.train(replace(config, set_weights=(("attic", 1.0),)), tmp_path / "weights")
    with pytest.raises(UserError, match=r"--validate attic is no set of the data; it has: room"):
        trainer.train(replace(config, validate=("attic",)), tmp_path / "validate")
    with pytest.raises(UserError, match=r"are too few|too few to train on"):
        trainer.train(replace(config, validate=("room",)), tmp_path / "few")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "efficientnet-lite2"}, r"--head 'efficientnet-lite2' is unknown; allowed: linear, mlp, dpt"),
        ({"teacher": "fastdepth"}, r"--photos and --teacher go together"),
        ({"photos": ("p",), "teacher": "mosaic"}, r"--teacher 'mosaic' is unknown; allowed: fastdepth"),
        ({"evaluate_every": 7}, r"--evaluate-every 7 is no multiple of --log-every 5"),
        ({"held_out_fraction": 0.0}, r"--held-out 0.0 must lie between 0 and 1"),
        ({"fov_deg": 180.0}, r"--fov-deg 180.0 must lie between 0 and 180"),
        ({"average": 1.0}, r"--average 1.0 must lie between 0 and 1"),
        ({"set_weights": (("a", -1.0),)}, r"--weight a=-1.0 must be 0 or more"),
        ({"widths": (4, 4, 4)}, r"--widths 4 must be 8 or more"),
        ({"learning_rate": 0.0}, r"--lr 0.0 must be above 0"),
    ],
)
def test_settings_that_no_training_takes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HeadTrainingConfig("depth", "mini", ("data",), **{**SMALL, **changes})
