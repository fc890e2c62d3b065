"""The model that a verb takes when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dune_cli.checkpoints import defaults, registry, weights_folder
from dune_cli.errors import WeightsMissing


@pytest.mark.parametrize("verb", ["depth", "classify", "segment"])
def test_every_candidate_is_published(verb: str) -> None:
    names = defaults.CANDIDATES[verb]
    assert len(set(names)) == len(names)
    assert all(registry.find(name) is not None for name in names)
    assert defaults.ADVICE[verb] in names


@pytest.mark.parametrize("verb", ["depth", "classify", "segment"])
def test_without_weights_the_sentence_says_what_to_pull(verb: str) -> None:
    with pytest.raises(WeightsMissing) as caught:
        defaults.default_model(verb)
    sentence = str(caught.value)
    assert f"dune weights pull {defaults.ADVICE[verb]}'" in sentence
    assert "MB with its encoder; licence: Apache-2.0" in sentence
    assert caught.value.exit_code == 3


def test_the_best_one_that_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = weights_folder.weights_folder()

    def put(name: str) -> None:
        entry = registry.find(name)
        assert entry is not None
        (folder / entry.file).write_bytes(b"0")
        monkeypatch.setattr(weights_folder, "_plausible", lambda path, entry: True)

    put("dinov2-vits14-nyu-linear")
    with pytest.raises(WeightsMissing):  # its encoder is not here
        defaults.default_model("depth")
    put("dinov2-vits14")
    assert defaults.default_model("depth") == "dinov2-vits14-nyu-linear"
    put("dinov2-vits14-nyu-dpt")
    assert defaults.default_model("depth") == "dinov2-vits14-nyu-dpt"
    put("dunemast3r-vits")
    assert defaults.default_model("depth") == "dinov2-vits14-nyu-dpt"
    put("dune-vits14-448")
    assert defaults.default_model("depth") == "dunemast3r-vits"
    with pytest.raises(WeightsMissing) as caught:
        defaults.default_model("classify")
    assert "with its encoder" not in str(caught.value)  # which is here already
    assert Path(folder).is_dir()
