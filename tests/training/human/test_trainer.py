"""A small real training of a head for people: it learns, goes on exactly after a kill, and its file finds people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.errors import CheckpointError, UserError
from dune_cli.io.photos import read_photo
from dune_cli.tasks import human
from dune_cli.training.heads import optimise
from dune_cli.training.human.config import PeopleHeadTrainingConfig
from dune_cli.training.human.finalize import finish
from dune_cli.training.human.trainer import train
from support.made_people import write_photos
from support.small_encoders import write_small_mini

SMALL = {
    "synthetic": 4,
    "views": 1,
    "size_px": 96,
    "width": 32,
    "hidden": 32,
    "depth": 1,
    "steps": 30,
    "batch_size": 4,
    "evaluate_every": 10,
    "log_every": 5,
    "learning_rate": 3e-3,
    "average": 0.8,
    "held_out_fraction": 0.3,
    "features": ("tokens1", "conv8"),
    "device": "cpu",
}


class KilledError(Exception):
    pass


def test_a_head_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = write_small_mini(tmp_path / "mini.safetensors")
    photos = write_photos(tmp_path / "photos", monkeypatch, 6)
    settings = {
        **SMALL,
        "encoder": str(encoder),
        "photos": (str(tmp_path / "photos"),),
        "cache": str(tmp_path / "cache"),
    }
    config = PeopleHeadTrainingConfig(**settings)
    trained = train(config, tmp_path / "run")
    update, steps = optimise.update_average, []

    def killed(*arguments: object) -> None:
        steps.append(1)
        if len(steps) == 12:
            raise KilledError
        update(*arguments)

    config = PeopleHeadTrainingConfig(**settings, checkpoint_minutes=0.0)
    monkeypatch.setattr(optimise, "update_average", killed)
    with pytest.raises(KilledError):
        train(config, tmp_path / "killed")
    monkeypatch.setattr(optimise, "update_average", update)
    resumed = train(config, tmp_path / "killed")
    assert all(torch.equal(v, resumed.head.state_dict()[k]) for k, v in trained.head.state_dict().items())
    with pytest.raises(UserError, match="holds a run with other settings"):
        train(PeopleHeadTrainingConfig(**settings | {"seed": 1}), tmp_path / "run")

    done = finish(trained, tmp_path / "run")
    log = [entry["validation"] for entry in done.document["log"] if "validation" in entry]
    assert min(log) < log[0]
    losses = [entry["loss"] for entry in done.document["log"]]
    assert losses[-1] < 0.8 * losses[0]
    assert {"photos", "made-up pictures"} == set(done.document["held_out"])
    assert "data:image/png" in done.report_html.read_text()
    model = human.load_human(done.head_half, device="cpu", encoder=encoder)
    assert [source.name for source in model.sources][1:] == ["mini.safetensors", "anny"]
    found = human.predict(model, read_photo(photos[0]), min_score=0.0)
    assert found.assumed_height is not None and found.people
    person = found.people[0]
    assert len(person.rotvec) == len(person.joints3d) == len(model.body.joint_names)
    assert np.isfinite(person.vertices.numpy()).all() and 0 < float(person.head[2]) < 1000
    assert human.describe_body(model)["rig"] == "light"
    other = write_small_mini(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(CheckpointError, match=r"was trained on the encoder mini\.safetensors .* give that encoder"):
        human.load_human(done.head, device="cpu", encoder=other)


def test_settings_that_no_training_takes(tmp_path: Path) -> None:
    for changes, words in (
        ({"size_px": 32}, "--size 32 must be 64 or more"),
        ({"views": 0}, "--views 0 must be 1 or more"),
        ({"photos": ()}, "--photos needs at least one folder"),
        ({"evaluate_every": 7}, "no multiple of --log-every"),
    ):
        with pytest.raises(UserError, match=words):
            PeopleHeadTrainingConfig(**{**SMALL, "encoder": "dune-mini", "photos": ("a",), **changes})
