"""How good a matcher is on held-out training scenes: the pose error of pairs whose poses are known."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.adapters import dune_matcher
from dune_cli.geometry.epipolar import estimate_relative_pose, pose_auc, pose_error
from dune_cli.io.json_files import write_json
from dune_cli.io.photos import read_photo
from dune_cli.matchers.dune import Dune
from dune_cli.matchers.matcher import FeatureMatcher, Features
from dune_cli.models.match_head import MatchHead
from dune_cli.provenance import Source
from dune_cli.training.common.export import write_full_and_half
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.matcher.sequences import RealPair
from dune_cli.training.matcher.trainer import TrainedMatcher, random_head, start

LEAST_TURN_DEG = 15.0  # between the views: nearer ones are easy for all
THRESHOLD_PX = 1.0  # of MAGSAC, in pixels of the matched image, as `dune eval pairs` has it


@dataclass(frozen=True)
class ValidationScore:
    """errors_deg (N,): the larger of a pair's rotation and translation-direction error, 180 for no pose."""

    errors_deg: np.ndarray
    matches: float
    seconds_a_pair: float


def choose(pairs: Sequence[RealPair], per_scene: int) -> list[RealPair]:
    """Held-out pairs with known poses and wide baselines: some of each scene, evenly over its turns."""
    chosen = []
    for scene in dict.fromkeys(pair.scene for pair in pairs):
        wide = [p for p in pairs if p.scene == scene and p.held_out and p.K0 is not None]
        wide = sorted((p for p in wide if p.turn_deg >= LEAST_TURN_DEG), key=lambda p: p.turn_deg)
        places = np.unique(np.linspace(0, len(wide) - 1, per_scene).round().astype(int)) if wide else []
        chosen += [wide[place] for place in places]
    return chosen


def score(matcher: FeatureMatcher, pairs: Sequence[RealPair], seed: int) -> ValidationScore:
    """Pose errors of a matcher on `choose`n pairs; each photo is looked at once. Seconds are those of matching alone
    plus the photo's share."""
    features: dict[str, Features] = {}
    errors, counts, seconds = [], [], 0.0
    for pair in pairs:
        for path in pair.photos:
            if str(path) not in features:
                rgb = read_photo(path).rgb
                began = time.process_time()
                features[str(path)] = matcher.extract(rgb)
                seconds += time.process_time() - began
        began = time.process_time()
        found = matcher.match_features(*(features[str(path)] for path in pair.photos))
        seconds += time.process_time() - began
        thresholds = (THRESHOLD_PX * found.pixel_size1, THRESHOLD_PX * found.pixel_size2)
        pose = estimate_relative_pose(found.points1, found.points2, pair.K0, pair.K1, thresholds, seed)
        error = 180.0
        if pose is not None:
            error = float(np.degrees(max(pose_error(pose.cam2_from_cam1, pair.cam1_from_cam0))))
        errors.append(error)
        counts.append(len(found.scores))
    return ValidationScore(np.array(errors), float(np.median(counts)), seconds / max(len(pairs), 1))


# A trained head as a file that `load_match_head` reads.


def head_weights(head: MatchHead, begun_from: Mapping[str, Source]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict, metadata) of a head's weight file; the metadata names the weights that the head began from."""
    tensors, metadata = adapters.to_safetensors(dune_matcher.checkpoint_of(head))
    return tensors, {**metadata, "dune.licence": licence_of(begun_from)}


def licence_of(begun_from: Mapping[str, Source]) -> str:
    """The header's licence text."""
    return "trained by dune from: " + json.dumps({s.name: s.licence for s in begun_from.values()}, sort_keys=True)


# The end of a matcher's run: scores on held-out scenes beside the start and a random head, the files.


@dataclass(frozen=True)
class MatcherFiles:
    """The files of a run, and what its report says."""

    head: Path
    head_half: Path
    report: Path
    document: dict[str, Any]


def finalize(trained: TrainedMatcher, output: Path) -> MatcherFiles:
    """Writes matcher.safetensors, matcher_fp16.safetensors and report.json."""
    full, half = write_full_and_half(output, "matcher", *head_weights(trained.head, trained.begun_from))
    report = output / "report.json"
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
    return MatcherFiles(full, half, report, document)
