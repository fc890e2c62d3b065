"""The strict load: what it refuses and says, and what it does to number types and to parts without storage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dune_cli.checkpoints.state_dict import KeyMap, load_strict
from dune_cli.errors import CheckpointError


def test_weights_that_do_not_fit_are_an_error_that_lists_the_keys() -> None:
    module, weight, bias = nn.Linear(2, 2), torch.zeros(2, 2), torch.zeros(2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError, match=r"does not fit a test: 1 key missing: bias; 1 key unexpected: other$"):
        load_strict(module, {"weight": weight, "other": bias}, "a test")
    with pytest.raises(CheckpointError, match=r"1 key of another shape: weight is \(3, 2\), not \(2, 2\)"):
        load_strict(module, {"weight": torch.zeros(3, 2), "bias": bias}, "a test")
    with pytest.raises(CheckpointError, match="1 key missing: bias"):  # no tensor
        load_strict(module, {"weight": weight, "bias": "b"}, "a test")
    with pytest.raises(CheckpointError, match=r"missing: theirs\.bias"):  # in the published names
        load_strict(module, {"weight": weight}, "a test", KeyMap(rules=(("theirs.", ""),)))
    assert torch.equal(module.weight, before)  # a refusal changes nothing


def test_exceptions_from_strictness_are_named() -> None:
    module, weight = nn.Linear(2, 2), torch.ones(2, 2)
    bias = module.bias.clone()
    load_strict(module, {"weight": weight}, "a test", given=("bias",))
    assert torch.equal(module.weight, weight) and torch.equal(module.bias, bias)
    load_strict(module, {"weight": weight, "bias": bias, "other": bias}, "a test", allow_unexpected=True)


def test_number_types_are_the_modules() -> None:
    norm = nn.BatchNorm2d(2)
    state = {key: value.half() if value.is_floating_point() else value + 7 for key, value in norm.state_dict().items()}
    load_strict(norm, state, "a test")
    assert norm.weight.dtype == torch.float32
    assert norm.num_batches_tracked.dtype == torch.int64 and int(norm.num_batches_tracked) == 7


def test_a_module_without_storage_gets_copies() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    state = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    load_strict(module, state, "a test")
    state["weight"].zero_()
    assert torch.equal(module.weight, torch.ones(2, 2))
