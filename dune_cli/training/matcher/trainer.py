"""The matcher's trainer: reads top to bottom. Settings in `MatcherConfig`."""

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
CONTEXT_TIMES, REFINEMENT_TIMES = 5.0, 15.0


@dataclass(frozen=True)
class TrainedMatcher:
    """What a run leaves. pairs: all labelled ones, held-out ones too. seconds: of this call."""

    config: MatcherConfig
    head: MatchHead
    begun_from: Mapping[str, Source]
    eye: EncoderExtractor
    pairs: Sequence[RealPair]
    seconds: float


def train(config: MatcherConfig, output: Path) -> TrainedMatcher:
    """Trains, or goes on training, the head in `output`.

    Raises UserError when `output` holds a run of other settings or inputs, JobFailed when a checkpoint cannot be
    written or the loss is no longer finite. Killed at any moment, the same call goes on from the last checkpoint, bit
    for bit on the same machine.
    """
    with dist_from_environment(runtime.pick_device(config.device)) as dist:
        if dist.world_size > 1:
            raise UserError("dune train matcher runs in one process; start it without torchrun")
        return _train(config, RunFolder(output), dist)


def _train(config: MatcherConfig, folder: RunFolder, dist: Dist) -> TrainedMatcher:
    recorded_inputs = folder.check(config)
    eye = EncoderExtractor(load_encoder(config.encoder, str(dist.device)))
    head, begun_from = start(config)
    head.to(dist.device)
    pairs = _labelled(config, folder.path, recorded_inputs)
    photos = _photos(config)
    inputs = {
        "encoder": eye.mini_hash(),
        "scenes": list(dict.fromkeys(pair.scene for pair in pairs)),
        "pairs": len(pairs),
        "photos": hashlib.sha256("\n".join(path.name for path in photos).encode()).hexdigest(),
    }
    folder.begin(config, inputs)

    examples = TrainingPairs(config, eye, head, [pair for pair in pairs if not pair.held_out], photos)
    trained = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weight_groups(head), lr=0.0, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    loop = TrainingLoop("matcher", folder, config, RunState(head, optimizer), dist)
    head.train()
    for step in loop.steps():
        set_learning_rate(optimizer, step, config.steps, config.learning_rate, warmup_fraction=WARMUP)
        numbers: dict[str, list[float]] = {}
        for place in range(config.pairs):
            loss, parts = losses(head, examples.draw(step, place), config.bfloat16)
            (loss / config.pairs).backward()
            for name, value in parts.items():
                numbers.setdefault(name, []).append(value)
        for parameter in trained:  # the refinement's have none before the first warped pair; checkpoints want all
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        check_finite([float(norm)], step + 1)
        means = {name: round(sum(values) / len(values), 5) for name, values in numbers.items()}
        loop.end_step(step, lambda rate, entry={"gradient": float(norm)} | means: entry)
    return TrainedMatcher(config, head.eval(), begun_from, eye, pairs, loop.seconds)


def losses(head: MatchHead, example: TrainingPair, bfloat16: bool) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of an example, and its parts as numbers."""
    device = example.seen0.xy.device
    labels = example.labels
    matches, none0, none1 = (
        torch.from_numpy(values.copy()).to(device) for values in (labels.matches, labels.none0, labels.none1)
    )
    far = None if example.far is None else torch.from_numpy(example.far).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        embedded = head.embed(example.seen0), head.embed(example.seen1)
        layers = head.assign(*embedded)
        offsets = head.offsets(*embedded, matches[:, 0], matches[:, 1])
    assigned = assignment_loss(layers, matches, none0, none1, far)
    best = layers[-1].pairs.detach().max(1).indices[matches[:, 0]]
    kind = "real" if example.H is None else "warped"
    parts = {
        f"{kind}/loss": float(assigned.detach()),
        f"{kind}/recall": float((best == matches[:, 1]).float().mean()),
        f"{kind}/matches": float(len(matches)),
    }
    if example.H is None:
        return assigned, parts
    H = torch.from_numpy(example.H).to(device, torch.float32)
    xy0, xy1 = example.seen0.xy[matches[:, 0]].float(), example.seen1.xy[matches[:, 1]].float()
    fine = refinement_loss(xy0, xy1, offsets[0].float(), offsets[1].float(), H)
    still = refinement_loss(xy0, xy1, torch.zeros_like(xy0), torch.zeros_like(xy1), H)
    return assigned + fine, parts | {"warped/fine": float(fine.detach()), "warped/unrefined": float(still)}


def weight_groups(head: MatchHead) -> list[dict[str, Any]]:
    """The trained weights: LightGlue's, and those that begin at zero, with `lr_scale` times its learning rate."""
    parts = ((head.glue, 1.0), (head.context, CONTEXT_TIMES), (head.refinement, REFINEMENT_TIMES))
    groups = [{"params": list(part.parameters()), "lr_scale": scale} for part, scale in parts]
    return [group for group in groups if group["params"]]


def start(config: MatcherConfig) -> tuple[MatchHead, dict[str, Source]]:
    """The head before its first step: the open weights, or `--init`'s."""
    sizes = head_config(config)
    head, begun_from = begin_match_head(sizes, config.seed)
    if config.init is not None:
        old = load_match_head(config.init, "cpu")
        head = continue_match_head(sizes, config.seed, old)
        begun_from = begun_from | {"init": old.source}
    return head, begun_from


def random_head(config: MatcherConfig) -> MatchHead:
    """The control: the open detector, and a matcher of random weights."""
    begun, _ = begin_match_head(head_config(config), config.seed)
    head = new_match_head(head_config(config), config.seed)
    head.detector.load_state_dict(begun.detector.state_dict())
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
    lacking = [scene for scene in scenes if read_matches(labels, scene) is None] if config.teacher_minutes > 0 else []
    if lacking:
        from dune_cli.matchers.aliked_lightglue import AlikedLightGlue

        teacher = AlikedLightGlue(config.device, TEACHER_PX, TEACHER_KEYPOINTS)
        made = match_scenes(lacking, teacher, labels, config.teacher_minutes)
        console.note(f"teacher: {made} scenes matched, in {labels}")
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
