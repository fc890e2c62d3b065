"""The layout of the people networks that come with dune: there and back, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dune_cli.checkpoints import adapters, inventory, weight_files, weights_folder
from dune_cli.checkpoints.adapters import dune_people
from dune_cli.checkpoints.loader import load_encoder, load_human_network
from dune_cli.errors import CheckpointError
from dune_cli.models.graph import Graph, GraphLayer, describe


def network(outputs: int) -> Graph:
    weights = {f"w{k}": torch.full((2, 3, 1, 1), float(k)) for k in range(outputs)}
    layers = [GraphLayer("convolution", ("x", f"w{k}"), f"y{k}", {"stride": 1, "same": True}) for k in range(outputs)]
    return Graph(layers, ["x"], [f"y{k}" for k in range(outputs)], weights)


def checkpoint(**outputs: int) -> dict[str, Any]:
    graphs = {name: network(count) for name, count in ({"movenet": 6, "blazepose": 4} | outputs).items()}
    return {
        "people": {f"{name}/{key}": one.weight(key) for name, one in graphs.items() for key in one.weights},
        "graphs": {name: describe(one) for name, one in graphs.items()},
    }


def test_there_and_back() -> None:
    tensors, header = adapters.to_safetensors(checkpoint())
    adapter, again = adapters.identify(tensors, header)
    assert adapter is dune_people
    built = adapter.build(again)
    assert torch.equal(built.movenet(torch.ones(1, 3, 2, 2))[5], torch.full((1, 2, 2, 2), 15.0))
    assert adapter.describe(again).parameters == 60


def test_what_it_says_of_itself() -> None:
    located = weights_folder.locate("dune-people")
    assert located.path.stat().st_size < 17e6
    described = inventory.describe_file(located)
    assert described["metadata"]["dune.licence"] == "Apache-2.0"
    assert len(json.loads(described["metadata"]["dune.sources"])) == 3
    with pytest.raises(CheckpointError, match=r"not an encoder model; load_human \(dune human"):
        load_encoder("dune-people")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graphs": "nonsense"}, "no layers"),
        ({"graphs": "[1]"}, "no layers by network"),
        ({"graphs": json.dumps({"movenet": {"layers": 3}})}, "movenet is no network"),
        ({"graphs": json.dumps({"movenet": 7})}, "movenet is no network"),
        ({}, "no layers"),
    ],
)
def test_damaged_headers_are_refused(change: dict[str, str], message: str, tmp_path: Any) -> None:
    tensors, header = adapters.to_safetensors(checkpoint())
    path = tmp_path / "people.safetensors"
    weight_files.write_safetensors(path, tensors, header | {"dune.facts": json.dumps(change)})
    with pytest.raises(CheckpointError, match=message):
        load_human_network(path, "cpu")


def test_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(CheckpointError, match="blazepose has 1 inputs and 3 outputs"):
        dune_people.build(checkpoint(blazepose=3))
