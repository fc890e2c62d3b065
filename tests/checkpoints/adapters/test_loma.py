"""LoMa's files: what is ignored, what is refused, the sizes read off the shapes."""

from __future__ import annotations

import pytest
import torch

from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.adapters import loma
from dune_cli.errors import CheckpointError
from dune_cli.models.loma import LomaNetwork


def _published(inputs: int = 128, width: int = 64) -> dict[str, torch.Tensor]:
    """A file with a narrow matcher, in the publishers' names."""
    network = LomaNetwork(inputs, width)
    state = {loma.KEYS.published(key): value for key, value in network.state_dict().items()}
    return state | {
        "_detector.encoder.layers.1.num_batches_tracked": torch.tensor(3),
        "log_assignment.8.matchability.weight": torch.zeros(1, width),
        "log_assignment.8.matchability.bias": torch.zeros(1),
    }


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return _published()


def test_known_by_its_keys(state: dict[str, torch.Tensor]) -> None:
    description = adapters.describe(state)
    assert (description.layout, description.kind, description.width) == ("loma", "detector-matcher", 64)
    assert "DeDoDe-B of 128 channels" in description.architecture
    assert adapters.identify({"state_dict": {f"module.{key}": value for key, value in state.items()}})[0] is loma


def test_layers_beyond_the_ninth_and_counters_are_ignored(state: dict[str, torch.Tensor]) -> None:
    more = {
        "transformers.9.self_attn.Wqkv.weight": torch.zeros(3, 1),
        "log_assignment.11.final_proj.bias": torch.zeros(7),
    }
    assert adapters.describe(state | more) == adapters.describe(state)
    network = loma.build(state | more)
    assert len(network.glue.transformers) == 9 and network.glue.config.heads == 1
    assert not any("running" in key for key in network.state_dict())  # folded


def test_equal_widths_need_no_projection() -> None:
    equal = _published(64, 64)
    assert "input_proj.weight" not in equal
    embedded = torch.ones(2, 64)
    assert torch.equal(loma.build(equal).glue.input_proj(embedded), embedded)


def test_converted_file_is_the_same(state: dict[str, torch.Tensor]) -> None:
    tensors, metadata = adapters.to_safetensors(state)
    adapter, again = adapters.identify(tensors, metadata)
    assert adapter is loma
    first, second = (loma.build(checkpoint).state_dict() for checkpoint in (state, again))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (
            "_descriptor.decoder.layers.4.hidden_blocks.2.1.running_var",
            "1 key missing: _descriptor.decoder.layers.4",
        ),
        ("transformers.8.cross_attn.to_qk.weight", "1 key missing: transformers.8.cross_attn.to_qk.weight"),
        ("log_assignment.0.final_proj.weight", "log_assignment.0.final_proj.weight is missing"),
    ],
)
def test_missing_keys_are_named_as_published(state: dict[str, torch.Tensor], left_out: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        loma.build({key: value for key, value in state.items() if key != left_out})


def test_what_does_not_fit_is_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="1 key unexpected: surprise"):
        loma.build(state | {"surprise": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"posenc.Wr.weight is \(3, 2\), not \(32, 2\)"):
        loma.build(state | {"posenc.Wr.weight": torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match="no multiple of 64"):
        loma.build(state | {"log_assignment.0.final_proj.weight": torch.zeros(65, 65)})
    with pytest.raises(CheckpointError, match="DeDoDe-G"):
        loma.describe(state | {"_descriptor.encoder.frozen_dinov2.dinov2_vitl14.cls_token": torch.zeros(1, 1, 1024)})
