"""Training of the matcher `dune`, top to bottom; the settings are `MatcherConfig`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dune_cli import console, runtime
from dune_cli.checkpoints.loader import load_encoder, load_match_head
from dune_cli.checkpoints.third_party import begin_match_head, continue_match_head, new_match_head
from dune_cli.errors import UserError
from dune_cli.io.json_files import Fields
from dune_cli.matchers.dune import EncoderExtractor
from dune_cli.models.lightglue import LightGlueConfig
from dune_cli.models.match_head import MatchHead, MatchHeadConfig
from dune_cli.provenance import Source
from dune_cli.training.common.checkpoints import RunState
from dune_cli.training.common.dist import Dist, dist_from_environment
from dune_cli.training.common.loop import TrainingLoop, check_finite, set_learning_rate
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.matcher.config import MatcherConfig
from dune_cli.training.matcher.dataset import TrainingPair, TrainingPairs
from dune_cli.training.matcher.loss import assignment_loss, refinement_loss
from dune_cli.training.matcher.scenes import PHOTOS, find_scenes
from dune_cli.training.matcher.sequences import RealPair, real_pairs
from dune_cli.training.matcher.teacher_matches import match_scenes, read_matches

TEACHER_PX, TEACHER_KEYPOINTS = 640, 1024
WARMUP = 0.05
CLIP = 1.0
CONTEXT_LR_SCALE, REFINEMENT_LR_SCALE = 5.0, 15.0


@dataclass(frozen=True)
class TrainedMatcher:
    """The result of a run. initial: the weights that the head was initialised with. pairs: all labelled ones, with the
    held-out ones. seconds: of this call."""

    config: MatcherConfig
    head: MatchHead
    initial: Mapping[str, Source]
    extractor: EncoderExtractor
    pairs: Sequence[RealPair]
    seconds: float


def train(config: MatcherConfig, output: Path) -> TrainedMatcher:
    """Trains the head in `output`, or resumes its training.

    Raises UserError when `output` holds a run of other settings or inputs, JobFailed when a checkpoint cannot be
    written or the loss is no longer finite. After an interruption, the same call resumes from the last checkpoint, with
    the same results bit for bit on the same machine.
    """
    with dist_from_environment(runtime.pick_device(config.device)) as dist:
        if dist.world_size > 1:
            raise UserError("dune train matcher runs in one process; start it without torchrun")
        return _train(config, RunFolder(output), dist)


def _train(config: MatcherConfig, folder: RunFolder, dist: Dist) -> TrainedMatcher:
    recorded_inputs = folder.check(config)
    extractor = EncoderExtractor(load_encoder(config.encoder, str(dist.device)))
    head, initial = initial_head(config)
    head.to(dist.device)
    pairs = _labelled(config, folder.path, recorded_inputs)
    photos = _photos(config)
    inputs = {
        "encoder": extractor.mini_hash(),
        "scenes": list(dict.fromkeys(pair.scene for pair in pairs)),
        "pairs": len(pairs),
        "photos": hashlib.sha256("\n".join(path.name for path in photos).encode()).hexdigest(),
    }
    folder.begin(config, inputs)

    training_pairs = TrainingPairs(config, extractor, head, [pair for pair in pairs if not pair.held_out], photos)
    trained = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weight_groups(head), lr=0.0, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    loop = TrainingLoop("matcher", folder, config, RunState(head, optimizer), dist)
    head.train()
    for step in loop.steps():
        set_learning_rate(optimizer, step, config.steps, config.learning_rate, warmup_fraction=WARMUP)
        parts: dict[str, list[float]] = {}
        for index in range(config.pairs):
            loss, pair_parts = pair_loss(head, training_pairs.draw(step, index), config.bfloat16)
            (loss / config.pairs).backward()
            for name, value in pair_parts.items():
                parts.setdefault(name, []).append(value)
        for parameter in trained:  # the refinement's have none before the first warped pair; checkpoints need all
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        check_finite([float(norm)], step + 1)
        means = {name: round(sum(values) / len(values), 5) for name, values in parts.items()}
        loop.end_step(step, lambda rate, entry={"gradient": float(norm)} | means: entry)
    return TrainedMatcher(config, head.eval(), initial, extractor, pairs, loop.seconds)


def pair_loss(head: MatchHead, pair: TrainingPair, bfloat16: bool) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a pair, and its parts as numbers for the log."""
    device = pair.features0.xy.device
    labels = pair.labels
    matches, unmatched0, unmatched1 = (
        torch.from_numpy(values.copy()).to(device) for values in (labels.matches, labels.unmatched0, labels.unmatched1)
    )
    forbidden = None if pair.forbidden is None else torch.from_numpy(pair.forbidden).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        embedded = head.embed(pair.features0), head.embed(pair.features1)
        layers = head.assign(*embedded)
        offsets = head.offsets(*embedded, matches[:, 0], matches[:, 1])
    assignment = assignment_loss(layers, matches, unmatched0, unmatched1, forbidden)
    best = layers[-1].pairs.detach().max(1).indices[matches[:, 0]]
    kind = "real" if pair.H is None else "warped"
    parts = {
        f"{kind}/loss": float(assignment.detach()),
        f"{kind}/recall": float((best == matches[:, 1]).float().mean()),
        f"{kind}/matches": float(len(matches)),
    }
    if pair.H is None:
        return assignment, parts
    H = torch.from_numpy(pair.H).to(device, torch.float32)
    xy0, xy1 = pair.features0.xy[matches[:, 0]].float(), pair.features1.xy[matches[:, 1]].float()
    refined = refinement_loss(xy0, xy1, offsets[0].float(), offsets[1].float(), H)
    unrefined = refinement_loss(xy0, xy1, torch.zeros_like(xy0), torch.zeros_like(xy1), H)
    return assignment + refined, parts | {"warped/fine": float(refined.detach()), "warped/unrefined": float(unrefined)}


def weight_groups(head: MatchHead) -> list[dict[str, Any]]:
    """The trained weights: LightGlue's, and those that begin at zero, with `lr_scale` times its learning rate."""
    parts = ((head.glue, 1.0), (head.context, CONTEXT_LR_SCALE), (head.refinement, REFINEMENT_LR_SCALE))
    groups = [{"params": list(part.parameters()), "lr_scale": scale} for part, scale in parts]
    return [group for group in groups if group["params"]]


def initial_head(config: MatcherConfig) -> tuple[MatchHead, dict[str, Source]]:
    """The head before its first step, and its weights: the open ones, or `--init`'s."""
    head, sources = begin_match_head(head_config(config), config.seed)
    if config.init is not None:
        given = load_match_head(config.init, "cpu")
        head = continue_match_head(head_config(config), config.seed, given)
        sources = sources | {"init": given.source}
    return head, sources


def random_head(config: MatcherConfig) -> MatchHead:
    """The control: the open detector, and a matcher of random weights."""
    pretrained, _ = begin_match_head(head_config(config), config.seed)
    head = new_match_head(head_config(config), config.seed)
    head.detector.load_state_dict(pretrained.detector.state_dict())
    return head.eval()


def head_config(config: MatcherConfig) -> MatchHeadConfig:
    """The head's sizes and settings."""
    glue = LightGlueConfig(prune_below=config.prune_below)
    return MatchHeadConfig(config.context, glue, long_side_px=config.size_px, max_keypoints=config.max_keypoints)


def _labelled(config: MatcherConfig, output: Path, recorded_inputs: Fields | None) -> list[RealPair]:
    """The real pairs. The teacher matches scenes that have no matches yet, or damaged ones; a resumed run keeps to its
    recorded scenes."""
    if not config.data:
        return []
    scenes = find_scenes([Path(folder) for folder in config.data], config.held_out_fraction, config.validate)
    labels = Path(config.labels) if config.labels else output / "labels"
    if recorded_inputs is not None:
        known = recorded_inputs.items_of("scenes")
        scenes = [scene for scene in scenes if scene.name in known]
    missing = [scene for scene in scenes if read_matches(labels, scene) is None] if config.teacher_minutes > 0 else []
    if missing:
        from dune_cli.matchers.aliked_lightglue import AlikedLightGlue

        teacher = AlikedLightGlue(config.device, TEACHER_PX, TEACHER_KEYPOINTS, first_keypoints=TEACHER_KEYPOINTS)
        written = match_scenes(missing, teacher, labels, config.teacher_minutes)
        console.note(f"teacher: {written} scenes matched, in {labels}")
    pairs = real_pairs(scenes, labels, config.seed)
    if config.warped_share < 1 and not any(not pair.held_out for pair in pairs):
        raise UserError(
            f"{labels} labels no pair of the scenes in --scenes to train on; give --teacher-minutes more time"
        )
    return pairs


def _photos(config: MatcherConfig) -> list[Path]:
    photos: list[Path] = []
    for folder in config.photos:
        if not Path(folder).is_dir():
            raise UserError(f"--photos {folder} is no folder")
        photos += sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in PHOTOS)
    if config.photos and not photos:
        raise UserError(f"--photos {', '.join(config.photos)} holds no photo")
    return photos
