"""`dune bench` on a small input: the JSON, the tables, what is refused."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from dune_cli.commands import bench
from dune_cli.evaluation import matching_speed, search_speed
from dune_cli.evaluation.matching_speed import MatchingSpeed
from dune_cli.evaluation.network_speed import PairSpeed, TaskSpeed
from dune_cli.evaluation.speed import NetworkSpeed
from support import small_networks


def test_json(dune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks.install(monkeypatch)
    monkeypatch.setattr(matching_speed, "measure_matching", partial(matching_speed.measure_matching, (24, 32)))
    arguments = ("bench", "--model", "dune-vits", "--size", 56, "--rounds", 1, "--threads", 1)
    done = dune(*arguments, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == "dune.bench/1"
    assert document["matching"]["identical"] is True
    goals = document["goals"]
    assert [goal["goal"] for goal in goals][:1] + [goal["goal"] for goal in goals][-1:] == [0.75, 10.0]
    assert all(goal["reached"] == (goal["measured"] >= goal["goal"]) for goal in goals)
    assert document["provenance"]["command"][:2] == ["dune", "bench"]


def test_the_table() -> None:
    rows = tuple(
        NetworkSpeed("two-view", dtype, seconds, 100.0, 100 / seconds, 100 / seconds / 125, {"decoder": 0.25})
        for dtype, seconds in (("float32", 1.0), ("bfloat16", 0.8))
    )
    peak = {"float32": {"8x8x8": 125.0}, "bfloat16": {"8x8x8": 1000.0}}
    networks = PairSpeed("cpu", 1, "wall", (42, 56), "bfloat16", peak, rows, {"two-view": 1.25}, "dune-vits")
    matching = MatchingSpeed((96, 128), 24, 5000, 0.1, 1.0, 2.0, 10.0, 20.0, False)
    text = "\n".join(bench.table(networks, matching))
    for words in (
        "one pair of 56x42 px, cpu, 1 threads, wall time",
        "100      100             80%   decoder 0.25",
        "5000 matches, DIFFERENT in all three ways",
        "KD-trees 2.000 s (20.0x)",
        "float32 two-view, share of the matrix-product peak: 0.80, goal 0.75: reached",
        "two-view, bfloat16 against float32: 1.25, goal 2: NOT reached",
        "matching against KD-trees: 20.00, goal 10: reached",
    ):
        assert words in text


def test_unknown_architecture(dune: Any) -> None:
    done = dune("bench", "--model", "resnet")
    assert done.returncode == 2
    assert "dune-vitb" in done.stderr


def test_depth_part(dune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks.install(monkeypatch)
    arguments = ("bench", "depth", "--size", 56, "--rounds", 1, "--threads", 1, "--quiet")
    done = dune(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["schema"], document["part"], document["model"]) == (
        "dune.bench/1",
        "depth",
        bench.MODELS["depth"][0],
    )
    assert {row["network"] for row in document["networks"]} == {"encoder", "network"}


def test_the_table_of_a_task() -> None:
    rows = tuple(
        NetworkSpeed(name, dtype, seconds, 100.0, 100 / seconds, 100 / seconds / 125, {})
        for name, dtype, seconds in (("encoder", "float32", 1.0), ("network and bodies", "float32", 2.0))
    )
    found = TaskSpeed(
        "cpu", 2, "wall", (9, 9), "bfloat16", {"float32": {"8x8x8": 125.0}}, rows, {"encoder": 3.0}, "m", 4
    )
    text = "\n".join(bench.task_table(found))
    for words in (
        "m, random weights, one image of 9x9 px with 4 people, cpu, 2 threads, wall time",
        "network and bodies float32      2.000     100       50             40%",
        "encoder, bfloat16 against float32: 3.00x",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("depth", "--model", "dune-vitb"), "allowed: dinov2-vits14-nyu-dpt"),
        (("human", "--size", "224"), "squares of its own size"),
        (("people",), "'people' is not one of"),
    ],
)
def test_what_bench_refuses(arguments: tuple[str, ...], word: str, dune: Any) -> None:
    done = dune("bench", *arguments)
    assert done.returncode == 2
    assert word in done.stderr


def test_search(dune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_speed, "measure_search", partial(search_speed.measure_search, 3000))
    done = dune("bench", "search", "--rounds", 1, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["part"], document["count"], document["dimension"]) == ("search", 3000, 256)
    assert {(row["engine"], row["queries"]) for row in document["engines"]} >= {("numpy", 1), ("numpy", 32)}
    assert all(row["identical"] for row in document["engines"]) and document["goals"][0]["goal"] == 0.1
    assert "those of float64" in dune("bench", "search", "--rounds", 1).stdout
    for words in (("--threads", 1), ("--size", 56), ("--architecture", "dune-mini")):
        assert "out" in dune("bench", "search", *words).stderr.splitlines()[-1]
