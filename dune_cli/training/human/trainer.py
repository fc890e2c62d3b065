"""Training of a head for people: reads top to bottom. Settings in `PeopleHeadTrainingConfig`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dune_cli import console, runtime
from dune_cli.bodies.skeleton import FREE_JOINTS
from dune_cli.errors import UserError
from dune_cli.models import heads
from dune_cli.models.people_head import PeopleHead, PeopleHeadConfig
from dune_cli.provenance import Source
from dune_cli.training.common.dataset import open_source
from dune_cli.training.common.dist import Dist, dist_from_environment
from dune_cli.training.common.loop import autocast, training_dtype, weight_decay_groups
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.common.sampler import held_out_mask
from dune_cli.training.heads.optimise import Optimisation, optimise
from dune_cli.training.heads.trainer import open_encoder, set_statistics
from dune_cli.training.human.config import PeopleHeadTrainingConfig
from dune_cli.training.human.feature_cache import PEOPLE, PictureCache, PictureRow
from dune_cli.training.human.losses import WEIGHTS, PeopleTargets, person_losses, score_loss, targets_of
from dune_cli.training.human.people import LabelledPeople
from dune_cli.training.human.pseudo_labels import BundledPeopleTeacher, LabelFolder
from dune_cli.training.human.synthetic import PictureMaker, pose_bank

NORM_SAMPLE = 128  # pictures that the features' statistics are measured on
SEED_BATCHES, SEED_JITTER = 3, 4


@dataclass(frozen=True)
class TrainedPeopleHead:
    """What a run leaves: the averaged weights of the best evaluation. seconds: of this call."""

    config: PeopleHeadTrainingConfig
    encoder: nn.Module
    encoder_source: Source
    head: PeopleHead
    teacher: BundledPeopleTeacher
    cache: PictureCache
    best_step: int
    best_loss: float
    seconds: float

    @property
    def sources(self) -> list[Source]:
        """The weights that the head depends on: the encoder's and the teacher's."""
        return [self.encoder_source, *self.teacher.sources]


def train(config: PeopleHeadTrainingConfig, output: Path) -> TrainedPeopleHead:
    """Trains, or goes on training, the head in `output`.

    Raises UserError when `output` holds a run of other settings or inputs, or the photos show too few people; JobFailed
    when a checkpoint cannot be written or the loss is no longer finite. Killed at any moment, the same call goes on
    from the last checkpoint, bit for bit on the same machine.
    """
    with dist_from_environment(runtime.pick_device(config.device)) as dist:
        if dist.world_size > 1:
            raise UserError("a head is trained in one process; start it without torchrun")
        return _train(config, RunFolder(output), dist)


def _train(config: PeopleHeadTrainingConfig, folder: RunFolder, dist: Dist) -> TrainedPeopleHead:
    folder.check(config)
    dtype = training_dtype(config.dtype, dist.device)
    encoder = open_encoder(config.encoder, str(dist.device))
    if config.size_px % encoder.patch:
        raise UserError(f"--size {config.size_px} is no multiple of the encoder's patch of {encoder.patch} px")
    head_config = sizes_of(config, encoder)
    paths = photos_of(config.photos)
    teacher = BundledPeopleTeacher(str(dist.device))
    inputs = {
        "encoder": encoder.source.sha256,
        "photos": hashlib.sha256("\0".join(f"{p} {p.stat().st_size}" for p in paths).encode()).hexdigest(),
        "teacher": ",".join(str(source.sha256) for source in teacher.sources),
    }
    folder.begin(config, inputs)
    place = Path(config.cache).expanduser() if config.cache else folder.path / "cache"
    labels = LabelFolder(place / "labels", teacher)
    read = [(path, labels.read(path)) for path in console.progress(paths, "labels", unit="photo")]
    photos = [(path, people) for path, people in read if people is not None]
    cache = open_cache(config, place, encoder, head_config, photos, teacher)
    cache.fill(encoder)

    batches = PeopleBatches(config, cache, dist.device)
    head = start(config, head_config, batches).to(dist.device)
    body = teacher.body.to(dist.device)
    cells = config.size_px // encoder.patch

    def losses_of(model: nn.Module, batch: dict[str, torch.Tensor], step: int | None) -> dict[str, torch.Tensor]:
        jitter = None
        if step is not None:
            jitter = torch.Generator().manual_seed((config.seed * 1009 + SEED_JITTER) * 1_000_003 + step)
        people = {name.removeprefix(PEOPLE): value for name, value in batch.items() if name.startswith(PEOPLE)}
        targets = targets_of(people, cells, config.size_px, jitter)
        with autocast(dist.device, dtype):
            context = model.context(batch, people["K"])
            logits = model.logits(context).float()
            tokens = tokens_of(model, context, targets)
        parts = {"score": score_loss(logits, people, targets, config.size_px)}
        if len(targets.image):
            said = model.numbers(tokens.float())
            parts |= {k: v.mean() for k, v in person_losses(said, targets, body, encoder.patch).items()}
        return parts

    @torch.inference_mode()
    def validate(average: nn.Module) -> dict[str, float]:
        average.eval()
        totals: dict[str, list[float]] = {}
        for batch in batches.held_out():
            for name, value in losses_of(average, batch, None).items():
                totals.setdefault(name, []).append(float(value))
        means = {name: float(np.mean(values)) for name, values in totals.items()}
        return {"validation": sum(WEIGHTS[name] * value for name, value in means.items())} | {
            f"held-out {name}": value for name, value in means.items()
        }

    best, seconds = optimise(
        Optimisation("head for people", config, folder, dist),
        head,
        weight_decay_groups(head, config.weight_decay),
        lambda step: sum(WEIGHTS[k] * v for k, v in losses_of(head, batches.training(step), step).items()),
        validate,
    )
    return TrainedPeopleHead(
        config,
        encoder,
        encoder.source,
        best.trainee.eval(),
        teacher,
        cache,
        int(best.step),
        float(best.loss),
        seconds,
    )


def tokens_of(head: PeopleHead, context: torch.Tensor, targets: PeopleTargets) -> torch.Tensor:
    """The tokens (Q, width) of the targets: people of one image see each other."""
    parts = [
        head.tokens(context[image], targets.cells[targets.image == image])
        for image in targets.image.unique(sorted=True).tolist()
    ]
    return torch.cat(parts) if parts else context.new_zeros(0, context.shape[-1])


def photos_of(sources: Sequence[str]) -> list[Path]:
    """The photos of folders and lists, each once. UserError for a source that is missing or empty."""
    paths: dict[Path, None] = {}
    for text in sources:
        source = open_source(text)
        paths |= dict.fromkeys(Path(source.label(index)) for index in range(len(source)))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"--photos: {missing[0]} is not there; check the list")
    return list(paths)


def sizes_of(config: PeopleHeadTrainingConfig, encoder: nn.Module) -> PeopleHeadConfig:
    """The head's sizes. UserError for features that the encoder does not give, or the head does not read."""
    names = config.features or default_features(encoder)
    try:
        measured = heads.measure(encoder, names)
        return PeopleHeadConfig(measured, FREE_JOINTS, config.size_px, config.width, config.hidden, config.depth)
    except ValueError as error:
        raise UserError(f"--features: {error}") from error


def default_features(encoder: nn.Module) -> tuple[str, ...]:
    """Two blocks of tokens, and of `dune-mini` the stem's maps of strides 16 and 8 besides."""
    count = heads.block_count(encoder)
    maps = [name for name in heads.feature_names(encoder) if name in ("lite16", "lite8")]
    return (*dict.fromkeys((f"tokens{(count - 1) // 2}", f"tokens{count - 1}")), *maps)


def open_cache(
    config: PeopleHeadTrainingConfig,
    folder: Path,
    encoder: nn.Module,
    head_config: PeopleHeadConfig,
    photos: Sequence[tuple[Path, LabelledPeople]],
    teacher: BundledPeopleTeacher,
) -> PictureCache:
    """The pictures of the run, photos first. Poses and backgrounds of made-up pictures are those of photos that are
    learned. UserError where there are too few photos or people."""
    held_out = held_out_mask([path.name for path, _ in photos], config.held_out_fraction)
    learned = [(path, people) for (path, people), out in zip(photos, held_out) if not out]
    trusted = [sum(int(people.trusted.sum()) for _, people in part) for part in (photos, learned)]
    if not trusted[1] or trusted[0] == trusted[1]:
        raise UserError(
            f"the {len(photos)} photos show {trusted[0]} people whom the teacher is sure of, too few to learn from "
            "some and hold out others; give more photos of people, or another --held-out"
        )
    console.note(f"{len(photos)} photos, {trusted[0]} people whom the teacher is sure of")
    bank = pose_bank([people for _, people in learned], [path for path, people in learned if not len(people)])
    maker = PictureMaker(teacher.body, bank, config.size_px, config.seed)
    rows = [
        PictureRow(photo, view, out) for photo, out in enumerate(held_out) for view in range(1 if out else config.views)
    ]
    made_out = round(config.synthetic * config.held_out_fraction)
    rows += [PictureRow(-1, number, number < made_out) for number in range(config.synthetic)]
    made_of = {
        "encoder": encoder.source.sha256,
        "features": [feature.name for feature in head_config.features],
        "size_px": config.size_px,
        "seed": config.seed,
    }
    return PictureCache(folder, made_of, photos, maker, rows)


class PeopleBatches:
    """Batches of the cache: which rows a step has is a function of the seed and the step alone."""

    def __init__(self, config: PeopleHeadTrainingConfig, cache: PictureCache, device: torch.device) -> None:
        self.config, self.cache, self.device = config, cache, device
        self.learned = np.array([number for number, row in enumerate(cache.rows) if not row.held_out])
        self.scored = [number for number, row in enumerate(cache.rows) if row.held_out]

    def training(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step, counted from 0, on the device."""
        size = min(self.config.batch_size, len(self.learned))
        epoch, place = divmod(step, len(self.learned) // size)
        order = np.random.default_rng([self.config.seed, SEED_BATCHES, epoch]).permutation(len(self.learned))
        return self.load(self.learned[order[place * size : (place + 1) * size]].tolist())

    def held_out(self) -> Iterator[dict[str, torch.Tensor]]:
        """The held-out pictures in fixed batches."""
        for first in range(0, len(self.scored), self.config.batch_size):
            yield self.load(self.scored[first : first + self.config.batch_size])

    def sample(self, count: int) -> Iterator[dict[str, torch.Tensor]]:
        """Learned pictures, one by one, spread evenly, about `count` of them."""
        for number in self.learned[:: max(1, len(self.learned) // count)].tolist():
            yield self.load([number])

    def load(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        """Rows by number, features in float32."""
        read = self.cache.read(numbers)
        return {
            name: value.to(self.device) if name.startswith(PEOPLE) else value.float().to(self.device)
            for name, value in read.items()
        }


def start(config: PeopleHeadTrainingConfig, head_config: PeopleHeadConfig, batches: PeopleBatches) -> PeopleHead:
    """The head before its first step: random weights by the seed, statistics of the features, the mean pose."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = PeopleHead(head_config)
    set_statistics(head.norms, head_config.features, batches.sample(NORM_SAMPLE))
    poses = torch.from_numpy(batches.cache.maker.bank.rotations)
    if len(poses):
        mean = poses.mean(0)[..., :2].mT.flatten(1)  # the first column, then the second
        head.start_pose[1:] = mean[1:]
    return head
