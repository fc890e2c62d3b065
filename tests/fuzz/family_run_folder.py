"""The folders of training runs: settings, log and broken photos, of `dune distill` and of `dune train matcher`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dune_cli.io.json_files import write_json
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.matcher.config import MatcherConfig
from fuzz.harness import Sample

DISTILL = DistillConfig(teachers=("xfeat",), data=("photos",), steps=12)
MATCHER = MatcherConfig(encoder="dune-mini", data=("scenes",), photos=("photos",))
INPUTS = {"photos": "0123abcd", "teachers": {"xfeat": "45ef"}}


def samples(folder: Path) -> Sequence[Sample]:
    run = RunFolder(folder)
    run.begin(DISTILL, INPUTS)
    log = [
        {"step": k, "lr": 1e-4 / k, "loss": 2.5 / k, "xfeat/patch/cosine": 0.1 * k, "seconds": 1.5 * k}
        for k in range(1, 9)
    ]
    for entry in (*log[:5], *log[3:]):
        run.append_log(entry)
    broken = {f"photos/{k}.jpg": f"cannot be read: {k}" for k in range(4)}
    for label, why in broken.items():
        run.append_broken(label, why)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_json(folder / "config.json", _matcher_run())
    matcher = {"config.json": (folder / "config.json").read_bytes(), "log.jsonl": files["log.jsonl"]}

    def read(case: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
        found = RunFolder(case)
        found.check(DISTILL)
        found.begin(DISTILL, INPUTS)
        return found.read_log(), found.read_broken()

    def read_matcher(case: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
        RunFolder(case).check(MATCHER)
        return RunFolder(case).read_log(), {}

    def accept(value: tuple[list[dict[str, Any]], dict[str, str]]) -> None:
        assert all(entry == log[entry["step"] - 1] for entry in value[0])
        assert [entry["step"] for entry in value[0]] == sorted({entry["step"] for entry in value[0]})
        assert all(broken[label] == why for label, why in value[1].items())

    return [
        Sample(files, read, accept),
        Sample(files, read, accept, ["log.jsonl", "broken.jsonl"]),
        Sample(matcher, read_matcher, accept),
    ]


def _matcher_run() -> dict[str, Any]:
    inputs = {"encoder": "0123", "scenes": ["wall", "rock"], "pairs": 12, "photos": "45ef"}
    return {"schema": MATCHER.SCHEMA, "config": MATCHER.as_json(), "inputs": inputs}
