"""Training of a head: reads top to bottom. Settings in `HeadTrainingConfig`."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dune_cli import console, runtime
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.errors import UserError
from dune_cli.models import heads
from dune_cli.models.heads import FeatureHead, FeatureHeadConfig, Task
from dune_cli.models.stems import FrozenStem
from dune_cli.provenance import Source
from dune_cli.training.common.dist import Dist, dist_from_environment
from dune_cli.training.common.loop import autocast, training_dtype, weight_decay_groups
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.common.sampler import held_out_mask
from dune_cli.training.distill.students import initialise
from dune_cli.training.heads import losses
from dune_cli.training.heads.config import HeadTrainingConfig
from dune_cli.training.heads.datasets import Dataset, DepthFile, Example, photos_dataset, read_datasets
from dune_cli.training.heads.feature_cache import (
    FOCAL,
    IMAGE,
    TARGET,
    FeatureCache,
    FeatureCacheKey,
    Row,
    examples_hash,
)
from dune_cli.training.heads.labels import LabelTeacher
from dune_cli.training.heads.optimise import Optimisation, optimise

TARGET_SCALES = {"depth": 8, "segmentation": 4, "classification": 1}  # cells of a label along a patch's side
DEPTH_UPSAMPLING = 2
NORM_SAMPLE = 256  # views that the features' statistics are measured on
LEAST_SCALE = 1e-4  # standard deviation
SEED_BATCHES, SEED_MIRROR = 1, 2
RANDOM = "random:"  # before an encoder's name
Batch = Mapping[str, torch.Tensor]
BatchKind = tuple[int, int, str]  # height and width of the input, kind of label


@dataclass(frozen=True)
class TrainedHead:
    """What a run leaves: the averaged weights of the best evaluation. seconds: of this call.

    encoder: as tuned; encoder_source: the file that it began from.
    """

    config: HeadTrainingConfig
    encoder: nn.Module
    encoder_source: Source
    head: FeatureHead
    dataset: Dataset
    validation: Sequence[bool]
    cache: FeatureCache
    best_step: int
    best_loss: float
    seconds: float
    teacher: LabelTeacher | None

    @property
    def sources(self) -> list[Source]:
        """The weights that the head depends on: the encoder's and the teacher's."""
        return [self.encoder_source, *(self.teacher.sources if self.teacher else ())]


class Trainee(nn.Module):
    """A head, and with it the encoder if that is tuned too."""

    def __init__(self, head: FeatureHead, encoder: nn.Module | None) -> None:
        super().__init__()
        self.head, self.encoder = head, encoder

    def forward(self, batch: Batch) -> torch.Tensor:
        """The head's result for a batch of the cache."""
        if self.encoder is None:
            return self.head({f.name: batch[f.name].float() for f in self.head.config.features})
        names = [f.name for f in self.head.config.features]
        return self.head(heads.extract(self.encoder, batch[IMAGE].float() / 255, names))


def train(config: HeadTrainingConfig, output: Path) -> TrainedHead:
    """Trains, or goes on training, the head in `output`.

    Raises UserError when `output` holds a run of other settings or inputs, or the data do not fit; JobFailed when a
    checkpoint cannot be written or the loss is no longer finite. Killed at any moment, the same call goes on from the
    last checkpoint, bit for bit on the same machine.
    """
    with dist_from_environment(runtime.pick_device(config.device)) as dist:
        if dist.world_size > 1:
            raise UserError("a head is trained in one process; start it without torchrun")
        return _train(config, RunFolder(output), dist)


def _train(config: HeadTrainingConfig, folder: RunFolder, dist: Dist) -> TrainedHead:
    folder.check(config)
    dtype = training_dtype(config.dtype, dist.device)
    encoder = open_encoder(config.encoder, str(dist.device))
    labelled = read_datasets(config.task, config.data, config.leave_out) if config.data else Dataset(())
    dataset = with_photos(labelled, config)
    validation = split(dataset.examples, config)
    teacher = LabelTeacher(config.teacher, dist.device) if config.teacher is not None else None
    head_config = sizes_of(config, encoder, dataset)
    cache = open_cache(config, folder.path, encoder, head_config, dataset, teacher)
    inputs = {
        "encoder": encoder.source.sha256,
        "examples": examples_hash(cache.examples),
        "teacher": ",".join(str(source.sha256) for source in teacher.sources) if teacher else "",
    }
    folder.begin(config, inputs)
    cache.fill(encoder)
    for path, why in list(cache.left_out.items())[:3]:
        console.note(f"{path} is left out: {why}")
    if len(cache.left_out) > 3:
        console.note(f"{len(cache.left_out)} photos in all are left out")

    batches = Batches(config, cache, validation, dist.device)
    trainee = start(config, head_config, encoder, batches).to(dist.device)

    def step_loss(step: int) -> torch.Tensor:
        kind, batch, weights = batches.training(step)
        with autocast(dist.device, dtype):
            result = trainee(batch)
        return (photo_losses(result.float(), batch, kind[2], head_config) * weights).mean()

    best, seconds = optimise(
        Optimisation(f"{config.task} head", config, folder, dist),
        trainee,
        parameter_groups(trainee, config),
        step_loss,
        lambda average: validate(average, batches, head_config),
    )
    chosen = best.trainee.eval()
    tuned = encoder if chosen.encoder is None else chosen.encoder
    return TrainedHead(
        config,
        tuned,
        encoder.source,
        chosen.head,
        dataset,
        validation,
        cache,
        int(best.step),
        float(best.loss),
        seconds,
        teacher,
    )


def open_encoder(name: str, device: str) -> nn.Module:
    """The encoder of a name or file; of `random:NAME` its architecture with random weights, a control of what its
    training brought."""
    if not name.startswith(RANDOM):
        return load_encoder(name, device)
    encoder = load_encoder(name.removeprefix(RANDOM), "cpu")
    source = encoder.source
    for part in encoder.modules():
        if isinstance(part, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
            part.reset_parameters()
    initialise(encoder, torch.Generator().manual_seed(0))
    digest = hashlib.sha256(f"{RANDOM}{source.sha256}".encode()).hexdigest()
    encoder.source = Source(f"{RANDOM}{source.name}", digest, source.licence)
    return encoder.eval().requires_grad_(False).to(device)


def with_photos(dataset: Dataset, config: HeadTrainingConfig) -> Dataset:
    """The data with the photos that a teacher labels, which are the set of the teacher's name."""
    if config.teacher is None:
        return dataset
    taught = photos_dataset(config.photos, config.teacher)
    if dataset.classes and taught.classes and dataset.classes != taught.classes:
        raise UserError(f"--teacher {config.teacher} has other classes than --data; train on one list of classes")
    return Dataset((*dataset.examples, *taught.examples), dataset.classes or taught.classes, dataset.palette)


def split(examples: Sequence[Example], config: HeadTrainingConfig) -> list[bool]:
    """Which examples are held out for validation: the sets of `validate`, else a share of the scenes of each set.

    Of class folders the share is taken of each class. UserError where nothing is left to train on.
    """
    if config.validate:
        sets = {example.set_name for example in examples}
        unknown = [name for name in config.validate if name not in sets]
        if unknown:
            raise UserError(f"--validate {unknown[0]} is no set of the data; it has: {', '.join(sorted(sets))}")
        held_out = [example.set_name in config.validate for example in examples]
    else:
        groups: dict[str, list[str]] = {}
        for example in examples:
            groups.setdefault(example.set_name, []).append(example.group)
        chosen: set[str] = set()
        for names in groups.values():
            distinct = list(dict.fromkeys(names))
            if len(distinct) > 1 or len(groups) == 1:
                flags = held_out_mask(distinct, config.held_out_fraction)
                chosen |= {name for name, flag in zip(distinct, flags) if flag}
        held_out = [example.group in chosen for example in examples]
    if all(held_out) or not any(held_out):
        raise UserError(
            f"the data have {len(examples)} photos of {len({e.group for e in examples})} scenes, too few to train on "
            "some and hold out others; give more, or name sets with --validate"
        )
    return held_out


def sizes_of(config: HeadTrainingConfig, encoder: nn.Module, dataset: Dataset) -> FeatureHeadConfig:
    """The head's sizes. UserError for features that the encoder does not give."""
    names = config.features or heads.default_features(encoder, config.task, config.kind)
    try:
        features = heads.measure(encoder, names)
        outputs = 1 if config.task == "depth" else len(dataset.classes)
        upsampling = DEPTH_UPSAMPLING if config.task == "depth" and config.kind == "dpt" else 1
        return FeatureHeadConfig(config.task, config.kind, features, outputs, config.widths, upsampling=upsampling)
    except ValueError as error:
        raise UserError(f"--features: {error}") from error


def open_cache(
    config: HeadTrainingConfig,
    output: Path,
    encoder: nn.Module,
    head_config: FeatureHeadConfig,
    dataset: Dataset,
    teacher: LabelTeacher | None,
) -> FeatureCache:
    """The cache of this run, in `config.cache` or inside the run's folder."""
    folder = Path(config.cache).expanduser() if config.cache else output / "cache"
    examples = [_with_camera(example, config.fov_deg) for example in dataset.examples]
    key = FeatureCacheKey(
        "" if config.tune else str(encoder.source.sha256),
        () if config.tune else tuple(f.name for f in head_config.features),
        encoder.patch,
        config.size_px,
        config.views,
        config.seed,
        config.photometric,
        TARGET_SCALES[config.task],
    )
    return FeatureCache(folder, key, examples, teacher, folder / "labels")


def _with_camera(example: Example, fov_deg: float | None) -> Example:
    """The example with the focal length of an assumed field of view where it has none."""
    from dune_cli.io.photos import read_header

    label = example.label
    if fov_deg is None or not isinstance(label, DepthFile) or label.focal_px is not None or label.kind != "metric":
        return example
    header = read_header(example.photo)
    if header is None:
        return example
    focal_px = max(header.width, header.height) / 2 / math.tan(math.radians(fov_deg) / 2)
    return replace(example, label=replace(label, focal_px=focal_px))


class Batches:
    """Batches of the cache: which rows a step has is a function of the seed and the step alone."""

    def __init__(
        self, config: HeadTrainingConfig, cache: FeatureCache, validation: Sequence[bool], device: torch.device
    ) -> None:
        self.config, self.cache, self.device = config, cache, device
        self.rows = {kind: [r for r in rows if not validation[r.example]] for kind, rows in cache.rows.items()}
        self.held_out = {
            kind: [r for r in rows if validation[r.example] and r.view == 0] for kind, rows in cache.rows.items()
        }
        self.rows = {kind: rows for kind, rows in self.rows.items() if rows}
        weights = dict(config.set_weights)
        sets = {example.set_name for example in cache.examples}
        unknown = [name for name in weights if name not in sets]
        if unknown:
            raise UserError(f"--weight {unknown[0]} is no set of the data; it has: {', '.join(sorted(sets))}")
        self.weights = torch.tensor([weights.get(example.set_name, 1.0) for example in cache.examples])
        if not self.rows or not any(self.held_out.values()):
            raise UserError("no labelled photo that can be read is left to train on, or to hold out; give more data")
        self._per_epoch = sum(-(-len(rows) // config.batch_size) for rows in self.rows.values())

    def training(self, step: int) -> tuple[BatchKind, Batch, torch.Tensor]:
        """The kind of a step's batch, the batch on the device, and the photos' weights (B)."""
        epoch, place = divmod(step, self._per_epoch)
        kind, rows = self._epoch(epoch)[place]
        mirrored = np.random.default_rng([self.config.seed, SEED_MIRROR, step]).random() < 0.5
        return kind, self._load(rows, mirrored), self.weights[[row.example for row in rows]].to(self.device)

    def validation(self) -> Iterator[tuple[BatchKind, list[Row], Batch]]:
        """The held-out photos, whole, in fixed batches."""
        for kind, rows in self.held_out.items():
            for first in range(0, len(rows), self.config.batch_size):
                part = rows[first : first + self.config.batch_size]
                yield kind, part, self._load(part, False)

    def sample(self, count: int) -> Iterator[tuple[BatchKind, Batch]]:
        """Training rows spread evenly over the data, about `count` of them."""
        every = [(kind, row) for kind, rows in self.rows.items() for row in rows]
        for kind, row in every[:: max(1, len(every) // count)]:
            yield kind, self._load([row], False)

    def _epoch(self, epoch: int) -> list[tuple[BatchKind, list[Row]]]:
        rng = np.random.default_rng([self.config.seed, SEED_BATCHES, epoch])
        size, batches = self.config.batch_size, []
        for kind, rows in self.rows.items():
            order = rng.permutation(len(rows))
            parts = np.array_split(order, -(-len(rows) // size))
            batches += [(kind, [rows[index] for index in part]) for part in parts]
        return [batches[index] for index in rng.permutation(len(batches))]

    def _load(self, rows: Sequence[Row], mirrored: bool) -> Batch:
        batch = {name: value.to(self.device) for name, value in self.cache.read(rows).items()}
        if not mirrored:
            return batch
        return {name: value.flip(-1) if value.ndim > 2 else value for name, value in batch.items()}


def start(config: HeadTrainingConfig, head_config: FeatureHeadConfig, encoder: nn.Module, batches: Batches) -> Trainee:
    """The head before its first step: random weights by the seed, statistics of the features, the data's mean depth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = heads.build_head(head_config)
    tuned = copy.deepcopy(heads.bare(encoder)) if config.tune else None
    if tuned is not None:
        for parameter in tunable(tuned).values():
            parameter.requires_grad_(True)
    logs: list[float] = []

    def samples() -> Iterator[Batch]:
        for kind, batch in batches.sample(NORM_SAMPLE):
            if kind[2] == "metric" and bool((batch[TARGET] > 0).any()):
                logs.append(float((batch[TARGET][batch[TARGET] > 0].float().log()).mean()))
            names = [feature.name for feature in head_config.features]
            yield batch if tuned is None else heads.extract(tuned, batch[IMAGE].float() / 255, names)

    set_statistics(head.norms, head_config.features, samples())
    if config.task == "depth":
        last = head.out[-1] if isinstance(head, heads.PyramidHead) else head.project
        nn.init.constant_(last.bias, float(np.mean(logs)) if logs else math.log(2.0))
    return Trainee(head, tuned)


def set_statistics(norms: nn.ModuleDict, features: Sequence[heads.Feature], samples: Iterable[Batch]) -> None:
    """Gives a head's norms the mean and deviation of each channel over samples of its features."""
    moments = {f.name: torch.zeros(3, f.channels, dtype=torch.float64) for f in features}
    for sample in samples:
        for name, sums in moments.items():
            values = sample[name].detach().double().cpu().transpose(0, 1).flatten(1)
            sums += torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])
    for name, (count, total, squares) in moments.items():
        norm = norms[heads.norm_key(name)]
        mean = total / count
        norm.mean.copy_(mean)
        norm.scale.copy_((squares / count - mean.square()).clamp(min=LEAST_SCALE**2).rsqrt())


def tunable(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """The encoder's parameters by name, without those of frozen stems."""
    frozen = {id(p) for module in encoder.modules() if isinstance(module, FrozenStem) for p in module.parameters()}
    return {name: p for name, p in encoder.named_parameters() if id(p) not in frozen}


def parameter_groups(trainee: Trainee, config: HeadTrainingConfig) -> list[dict[str, Any]]:
    """AdamW's groups: the head's weights and biases, and those of a tuned encoder at its own rate."""
    groups = weight_decay_groups(trainee.head, config.weight_decay)
    if trainee.encoder is not None:
        tuned = weight_decay_groups(trainee.encoder, config.weight_decay)
        groups += [group | {"lr_scale": config.encoder_lr_scale} for group in tuned]
    return [group for group in groups if group["params"]]


def photo_losses(result: torch.Tensor, batch: Batch, kind: str, head_config: FeatureHeadConfig) -> torch.Tensor:
    """The loss of each photo of a batch (B) whose labels are of one kind."""
    target = batch[TARGET]
    if kind == "class":
        return losses.class_loss(result, target)
    if result.shape[-2:] != target.shape[-2:]:
        result = F.interpolate(result, size=target.shape[-2:], mode="bilinear", align_corners=False)
    if kind == "classes":
        return losses.class_map_loss(result, target)
    if kind == "logits":
        return losses.distillation_loss(result, target.float())
    if kind == "disparity":
        return losses.disparity_loss(result[:, 0], target.float())
    known = torch.isfinite(batch[FOCAL])
    focal_px = torch.where(known, batch[FOCAL], head_config.canonical_focal_px)
    log_depth = result[:, 0] + heads.focal_shift(focal_px, head_config.canonical_focal_px, result.device)
    return losses.depth_loss(log_depth, target.float(), known)


@torch.inference_mode()
def validate(average: Trainee, batches: Batches, head_config: FeatureHeadConfig) -> dict[str, float]:
    """The mean loss over the held-out photos, weighted as in training, and of classes the accuracy."""
    average.eval()
    total = weight = correct = 0.0
    task: Task = head_config.task
    count = 0
    for kind, rows, batch in batches.validation():
        result = average(batch).float()
        weights = batches.weights[[row.example for row in rows]].to(result.device)
        total += float((photo_losses(result, batch, kind[2], head_config) * weights).sum())
        weight += float(weights.sum())
        if task == "classification":
            correct += float((result.argmax(1) == batch[TARGET]).sum())
        count += len(rows)
    scores = {"validation": total / max(weight, 1e-9)}
    return scores | ({"accuracy": correct / count} if task == "classification" else {})
