"""The end of a matcher's run: scores on held-out scenes beside the start and a random head, the files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dune_cli.geometry.pose_auc import pose_auc
from dune_cli.io.jsons import write_json
from dune_cli.matchers.dune import Dune
from dune_cli.models.match_head import MatchHead
from dune_cli.training.folder import RunFolder
from dune_cli.training.matcher.export import write_head
from dune_cli.training.matcher.train import TrainedMatcher, random_head, start
from dune_cli.training.matcher.validation import choose, score


@dataclass(frozen=True)
class Finished:
    """The files of a run, and what its report says."""

    head: Path
    head_half: Path
    report: Path
    document: dict[str, Any]


def finish(trained: TrainedMatcher, output: Path) -> Finished:
    """Writes matcher.safetensors, matcher_fp16.safetensors and report.json."""
    full, half, report = (output / name for name in ("matcher.safetensors", "matcher_fp16.safetensors", "report.json"))
    write_head(full, trained.head, trained.begun_from, torch.float32)
    write_head(half, trained.head, trained.begun_from, torch.float16)
    device = trained.eye.device
    heads: dict[str, MatchHead] = {
        "trained": trained.head,
        "start": start(trained.config)[0].to(device).eval(),
        "random": random_head(trained.config).to(device),
    }
    pairs = choose(trained.pairs, trained.config.validation_pairs)
    began = time.monotonic()
    scores = {}
    for name, head in heads.items() if pairs else ():
        found = score(Dune(trained.eye, head), pairs, trained.config.seed)
        auc5, auc10, auc20 = (round(area, 4) for area in pose_auc(found.errors_deg))
        scores[name] = {
            "auc5": auc5,
            "auc10": auc10,
            "auc20": auc20,
            "median_matches": found.matches,
            "cpu_seconds_a_pair": round(found.seconds_a_pair, 3),
            "errors_deg": [round(float(error), 3) for error in found.errors_deg],
        }
    log = RunFolder(output).read_log()
    document = {
        "schema": "dune.matcher-report/1",
        "config": trained.config.as_json(),
        "begun_from": {s.name: {"sha256": s.sha256, "licence": s.licence} for s in trained.begun_from.values()},
        "steps": trained.config.steps,
        "seconds": log[-1]["seconds"] if log else trained.seconds,
        "training_pairs": sum(not pair.held_out for pair in trained.pairs),
        "validation": {
            "pairs": [[pair.scene, *(path.name for path in pair.photos), round(pair.turn_deg, 1)] for pair in pairs],
            "note": "wide baselines of held-out training scenes; poses of cameras.json, else of structure from motion "
            "on the teacher's matches. 'start' is XFeat + LighterGlue in this implementation.",
            "scores": scores,
            "seconds": round(time.monotonic() - began, 1),
        },
        "last_log": log[-1] if log else {},
    }
    write_json(report, document)
    return Finished(full, half, report, document)
