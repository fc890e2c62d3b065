"""The end of a matcher's training: its weight files, and a report with the pose errors on held-out scenes beside the
initial and a random head."""

from __future__ import annotations

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
from dune_cli.training.common.export import licences_text, write_full_and_half
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.matcher.sequences import RealPair
from dune_cli.training.matcher.trainer import TrainedMatcher, initial_head, random_head

MIN_VIEW_ANGLE_DEG = 15.0  # of validation pairs: smaller ones are easy for every matcher
THRESHOLD_PX = 1.0  # of MAGSAC, in pixels of the matched image, as `dune eval pairs` has it


@dataclass(frozen=True)
class ValidationScore:
    """errors_deg (N,): the larger of a pair's rotation and translation-direction error, 180 without a pose. matches:
    median number of a pair's matches."""

    errors_deg: np.ndarray
    matches: float
    seconds_a_pair: float


def select_validation_pairs(pairs: Sequence[RealPair], per_scene: int) -> list[RealPair]:
    """Held-out pairs with known poses and wide baselines: at most `per_scene` of each, spread over the view angles."""
    selected = []
    for scene in dict.fromkeys(pair.scene for pair in pairs):
        wide = [p for p in pairs if p.scene == scene and p.held_out and p.K0 is not None]
        wide = sorted((p for p in wide if p.view_angle_deg >= MIN_VIEW_ANGLE_DEG), key=lambda p: p.view_angle_deg)
        indices = np.unique(np.linspace(0, len(wide) - 1, per_scene).round().astype(int)) if wide else []
        selected += [wide[index] for index in indices]
    return selected


def evaluate(matcher: FeatureMatcher, pairs: Sequence[RealPair], seed: int) -> ValidationScore:
    """Pose errors of a matcher on the `select_validation_pairs`. Features are extracted once a photo. The seconds are
    processor time of extraction and matching."""
    features: dict[str, Features] = {}
    errors, counts, seconds = [], [], 0.0
    for pair in pairs:
        for path in pair.photos:
            if str(path) not in features:
                rgb = read_photo(path).rgb
                started = time.process_time()
                features[str(path)] = matcher.extract(rgb)
                seconds += time.process_time() - started
        started = time.process_time()
        matches = matcher.match_features(*(features[str(path)] for path in pair.photos))
        seconds += time.process_time() - started
        thresholds_px = (THRESHOLD_PX * matches.pixel_size1, THRESHOLD_PX * matches.pixel_size2)
        pose = estimate_relative_pose(matches.points1, matches.points2, pair.K0, pair.K1, thresholds_px, seed)
        error = 180.0
        if pose is not None:
            error = float(np.degrees(max(pose_error(pose.cam2_from_cam1, pair.cam1_from_cam0))))
        errors.append(error)
        counts.append(len(matches.scores))
    return ValidationScore(np.array(errors), float(np.median(counts)), seconds / max(len(pairs), 1))


def head_weights(head: MatchHead, initial: Mapping[str, Source]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict, metadata) of a head's weight file; the metadata names the `initial` weights."""
    tensors, metadata = adapters.to_safetensors(dune_matcher.checkpoint_of(head))
    return tensors, {**metadata, "dune.licence": licence_of(initial)}


def licence_of(initial: Mapping[str, Source]) -> str:
    """The licence in the metadata."""
    return "trained by dune from " + licences_text({s.name: s.licence for s in initial.values()})


@dataclass(frozen=True)
class MatcherFiles:
    """The files of a run, and its report."""

    head: Path
    head_half: Path
    report: Path
    document: dict[str, Any]


def finalize(trained: TrainedMatcher, output: Path) -> MatcherFiles:
    """Writes matcher.safetensors, matcher_fp16.safetensors and report.json."""
    full, half = write_full_and_half(output, "matcher", *head_weights(trained.head, trained.initial))
    report = output / "report.json"
    device = trained.extractor.device
    heads: dict[str, MatchHead] = {
        "trained": trained.head,
        "start": initial_head(trained.config)[0].to(device).eval(),
        "random": random_head(trained.config).to(device),
    }
    pairs = select_validation_pairs(trained.pairs, trained.config.validation_pairs)
    started = time.monotonic()
    scores = {}
    for name, head in heads.items() if pairs else ():
        score = evaluate(Dune(trained.extractor, head), pairs, trained.config.seed)
        auc5, auc10, auc20 = (round(area, 4) for area in pose_auc(score.errors_deg))
        scores[name] = {
            "auc5": auc5,
            "auc10": auc10,
            "auc20": auc20,
            "median_matches": score.matches,
            "cpu_seconds_a_pair": round(score.seconds_a_pair, 3),
            "errors_deg": [round(float(error), 3) for error in score.errors_deg],
        }
    log = RunFolder(output).read_log()
    document = {
        "schema": "dune.matcher-report/1",
        "config": trained.config.as_json(),
        "begun_from": {s.name: {"sha256": s.sha256, "licence": s.licence} for s in trained.initial.values()},
        "steps": trained.config.steps,
        "seconds": log[-1]["seconds"] if log else trained.seconds,
        "training_pairs": sum(not pair.held_out for pair in trained.pairs),
        "validation": {
            "pairs": [
                [pair.scene, *(path.name for path in pair.photos), round(pair.view_angle_deg, 1)] for pair in pairs
            ],
            "note": "wide baselines of held-out training scenes; poses of cameras.json, else of structure from motion "
            "on the teacher's matches. 'start' is XFeat + LighterGlue in this implementation.",
            "scores": scores,
            "seconds": round(time.monotonic() - started, 1),
        },
        "last_log": log[-1] if log else {},
    }
    write_json(report, document)
    return MatcherFiles(full, half, report, document)
