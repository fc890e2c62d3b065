"""The end of a head's run: scores on held-out photos beside controls, the head's file, report.json and report.html."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.adapters import head as head_adapter
from dune_cli.io.depth_files import colored
from dune_cli.io.json_files import write_json
from dune_cli.io.outputs import atomic_path
from dune_cli.io.photos import read_photo
from dune_cli.io.png import class_colors
from dune_cli.models.heads import HeadCard, focal_shift
from dune_cli.provenance import Run
from dune_cli.training.common.export import licences_text, write_full_and_half
from dune_cli.training.common.html import image, page, plot, series, table
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.heads import metrics
from dune_cli.training.heads.feature_cache import FOCAL, TARGET, Row
from dune_cli.training.heads.trainer import Batch, Batches, TrainedHead, Trainee, tunable
from dune_cli.training.heads.views import draw_view, view_image

SCHEMA = "dune.head-report/1"
MEAN_MAP = (12, 16)  # rows and columns
PICTURES = 6  # rows of the report's pictures
TILE_PX = (120, 160)
MOST_CLASSES_SHOWN = 40
WORST_LOG_RATIO = 0.7  # at which an error map is white


@dataclass(frozen=True)
class FinishedHead:
    """The files of a run, and what its report says."""

    head: Path
    head_half: Path
    report_json: Path
    report_html: Path
    document: dict[str, Any]


@dataclass(frozen=True)
class HeldOutResult:
    """A held-out photo: the head's result, its label and its kind. log_depth (h, w), logits (C, h, w) or (C)."""

    row: Row
    kind: str
    result: np.ndarray
    target: np.ndarray
    focal_px: float


def finish(trained: TrainedHead, output: Path) -> FinishedHead:
    """Writes head.safetensors (float32), head_fp16.safetensors, report.json and report.html into `output`.

    JobFailed when they cannot be written.
    """
    config, device = trained.config, next(trained.head.parameters()).device
    batches = Batches(config, trained.cache, trained.validation, device)
    trainee = Trainee(trained.head, trained.encoder if config.tune else None).eval()
    results = list(held_out_results(trained, trainee, batches))
    scores = SCORERS[config.task](trained, results)
    measured: dict[str, Any] = {"validation": scores}
    if config.task == "depth":
        measured["mean_log_depth"] = mean_log_depth(trained, batches)
    card = HeadCard(
        encoder=trained.encoder_source.name,
        encoder_sha256=str(trained.encoder_source.sha256),
        size_px=config.size_px,
        licence=licence_of(trained),
        classes=trained.dataset.classes,
        palette=trained.dataset.palette or palette_of(trained.dataset.classes),
        data=data_of(trained),
        measured=measured,
    )
    tuned = tunable(trained.encoder) if config.tune else None
    tensors, header = adapters.to_safetensors(head_adapter.checkpoint_of(trained.head, card, tuned))
    files = write_full_and_half(output, "head", tensors, header | {"dune.licence": card.licence})
    document = report_document(trained, RunFolder(output), card, scores)
    write_json(output / "report.json", document)
    target = output / "report.html"
    with atomic_path(target) as temporary:
        temporary.write_text(report_page(document, trained, results), encoding="utf-8")
    return FinishedHead(*files, output / "report.json", target, document)


def palette_of(classes: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours for class numbers; none without classes."""
    return tuple(tuple(int(value) for value in color) for color in class_colors(len(classes))) if classes else ()


def licence_of(trained: TrainedHead) -> str:
    """The header's licence text: whose weights the head depends on."""
    return "trained by dune on " + licences_text({s.name: s.licence for s in trained.sources})


def data_of(trained: TrainedHead) -> tuple[str, ...]:
    """The sets that the head learned from, with their numbers of photos."""
    kept = [index for index in trained.cache.kinds if not trained.validation[index]]
    counts = Counter(trained.cache.examples[index].set_name for index in kept)
    return tuple(f"{name}: {count} photos" for name, count in counts.items())


# --- scores on held-out photos ---


@torch.inference_mode()
def held_out_results(trained: TrainedHead, trainee: Trainee, batches: Batches) -> Any:
    """The head's result for every held-out photo, at the label's size."""
    for kind, rows, batch in batches.validation():
        result = trainee(batch).float()
        if result.ndim == 4:
            size = batch[TARGET].shape[-2:]
            result = F.interpolate(result, size=size, mode="bilinear", align_corners=False)
        if trained.config.task == "depth":
            result = result[:, 0] + _shift(batch, trained)
        for index, row in enumerate(rows):
            target = batch[TARGET][index].float().cpu().numpy()
            focal_px = float(batch[FOCAL][index])
            yield HeldOutResult(row, kind[2], result[index].cpu().numpy(), target, focal_px)


def _shift(batch: Batch, trained: TrainedHead) -> torch.Tensor:
    canonical = trained.head.config.canonical_focal_px
    focal_px = torch.where(torch.isfinite(batch[FOCAL]), batch[FOCAL], canonical)
    return focal_shift(focal_px, canonical, focal_px.device)


def depth_scores(trained: TrainedHead, results: Sequence[HeldOutResult]) -> dict[str, Any]:
    """By set: AbsRel and delta_1 of metric depth, as predicted, after one scale, and after scale and shift."""
    by_set: dict[str, list[dict[str, float]]] = {}
    for one in results:
        known = one.target > 0
        if not known.any():
            continue
        set_name, depth = trained.cache.examples[one.row.example].set_name, np.exp(one.result)
        if one.kind == "disparity":
            numbers = {"correlation": metrics.disparity_correlation(depth[known], one.target[known])}
        else:
            alignments = [a for a in metrics.ALIGNMENTS if a != "raw" or np.isfinite(one.focal_px)]
            scores = {a: metrics.depth_score(depth[known], one.target[known], a) for a in alignments}
            numbers = {f"{a} {n}": getattr(s, n) for a, s in scores.items() for n in ("abs_rel", "delta1")}
        by_set.setdefault(set_name, []).append(numbers)
    return {
        name: {"photos": len(rows)}
        | {key: round(float(np.mean([row[key] for row in rows if key in row])), 4) for key in _keys(rows)}
        for name, rows in by_set.items()
    }


def _keys(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def segmentation_scores(trained: TrainedHead, results: Sequence[HeldOutResult]) -> dict[str, Any]:
    """Mean IoU and pixel accuracy, beside those of the most frequent class everywhere; the IoU of each class."""
    classes = len(trained.dataset.classes)
    total, majority = np.zeros((classes, classes), np.int64), np.zeros((classes, classes), np.int64)
    truths = [_true_classes(one) for one in results]
    counts = sum(np.bincount(t[t != 255].astype(np.int64), minlength=classes) for t in truths)
    most = int(np.argmax(counts))
    for one, true in zip(results, truths):
        total += metrics.confusion(one.result.argmax(0), true, classes)
        majority += metrics.confusion(np.full(true.shape, most), true, classes)
    iou = metrics.class_iou(total)
    return {
        "photos": len(results),
        "mean_iou": round(metrics.mean_iou(total), 4),
        "pixel_accuracy": round(float(np.trace(total) / max(total.sum(), 1)), 4),
        "majority_class": trained.dataset.classes[most],
        "majority_mean_iou": round(metrics.mean_iou(majority), 4),
        "majority_pixel_accuracy": round(float(np.trace(majority) / max(majority.sum(), 1)), 4),
        "iou": {name: round(float(value), 4) for name, value in zip(trained.dataset.classes, iou) if value == value},
    }


def _true_classes(one: HeldOutResult) -> np.ndarray:
    return one.target.argmax(0) if one.kind == "logits" else one.target.astype(np.int64)


def classification_scores(trained: TrainedHead, results: Sequence[HeldOutResult]) -> dict[str, Any]:
    """Top-1 and top-5 accuracy, the mean over the classes, the most frequent class's share, the confusion matrix."""
    classes = len(trained.dataset.classes)
    true = np.array([int(one.target) for one in results])
    order = np.stack([np.argsort(-one.result, kind="stable") for one in results])
    matrix = metrics.confusion(order[:, 0], true, classes, ignored=-1)
    present = matrix.sum(1) > 0
    return {
        "photos": len(results),
        "top1": round(float((order[:, 0] == true).mean()), 4),
        "top5": round(float((order[:, :5] == true[:, None]).any(1).mean()), 4),
        "mean_over_classes": round(float((np.diag(matrix)[present] / matrix.sum(1)[present]).mean()), 4),
        "majority": round(float(matrix.sum(1).max() / max(matrix.sum(), 1)), 4),
        "confusion": matrix.tolist() if classes <= MOST_CLASSES_SHOWN else None,
    }


SCORERS = {"depth": depth_scores, "segmentation": segmentation_scores, "classification": classification_scores}


@torch.inference_mode()
def mean_log_depth(trained: TrainedHead, batches: Batches) -> list[list[float]] | None:
    """The mean log-depth of the training photos for the canonical focal length, by place: the control "mean map".

    MEAN_MAP cells over the whole photo; None where no photo has metric depth and a known camera.
    """
    total, count = np.zeros(MEAN_MAP), np.zeros(MEAN_MAP)
    for kind, rows in batches.rows.items():
        for row in rows if kind[2] == "metric" else ():
            if row.view != 0:
                continue
            stored = trained.cache.read([row])
            depth, focal_px = stored[TARGET].float(), stored[FOCAL]
            if not bool(torch.isfinite(focal_px)):
                continue
            known = (depth > 0).float()
            logs = torch.where(depth > 0, depth, 1.0).log() - float(
                focal_shift(float(focal_px), trained.head.config.canonical_focal_px, depth.device)
            )
            total += F.adaptive_avg_pool2d(logs * known, MEAN_MAP)[0].numpy()
            count += F.adaptive_avg_pool2d(known, MEAN_MAP)[0].numpy()
    if not count.any():
        return None
    filled = total / np.maximum(count, 1e-9)
    filled[count == 0] = total.sum() / count.sum()
    return [[round(float(value), 4) for value in row] for row in filled]


# --- report ---


def report_document(
    trained: TrainedHead, folder: RunFolder, card: HeadCard, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of report.json."""
    log = folder.read_log()
    seconds = log[-1]["seconds"] if log else trained.seconds
    kinds = list(trained.cache.kinds)
    return {
        "schema": SCHEMA,
        "config": trained.config.as_json(),
        "head": {
            "kind": trained.head.config.kind,
            "features": [feature.name for feature in trained.head.config.features],
            "parameters": sum(parameter.numel() for parameter in trained.head.parameters()),
        },
        "encoder": {"name": card.encoder, "sha256": card.encoder_sha256, "tuned": trained.config.tune},
        "classes": list(card.classes),
        "data": list(card.data),
        "photos": {
            "train": sum(not trained.validation[index] for index in kinds),
            "held_out": sum(trained.validation[index] for index in kinds),
            "left_out": len(trained.cache.left_out),
        },
        "best_step": trained.best_step,
        "validation_loss": trained.best_loss,
        "held_out": dict(scores),
        "seconds": seconds,
        "cache_bytes": trained.cache.bytes,
        "log": log,
        "provenance": Run(trained.config.seed, {"training": seconds}).provenance(trained.sources, []),
    }


def report_page(document: Mapping[str, Any], trained: TrainedHead, results: Sequence[HeldOutResult]) -> str:
    """report.html: scores, curves, pictures of held-out photos, settings."""
    log, scores = document["log"], document["held_out"]
    task = trained.config.task
    parts = [f"<h1>A head for {html.escape(task)} on {html.escape(document['encoder']['name'])}</h1>"]
    if task == "depth":
        names = _keys(list(scores.values()))
        rows = [[name, *(row.get(key, "") for key in names)] for name, row in scores.items()]
        parts.append(table(["set", *names], rows, "Held-out photos"))
    else:
        plain = {key: value for key, value in scores.items() if not isinstance(value, (dict, list))}
        parts.append(table(["score", "value"], [[*pair] for pair in plain.items()], "Held-out photos"))
    if task == "segmentation":
        parts.append(table(["class", "IoU"], [[*pair] for pair in scores["iou"].items()], "Classes"))
    if scores.get("confusion"):
        names = list(document["classes"])
        rows = [[name, *row] for name, row in zip(names, scores["confusion"])]
        parts.append(table(["true class", *names], rows, "Confusion: photos by true class and predicted class"))
    curves = {"training": series(log, "loss"), "validation": series(log, "validation")}
    parts.append(plot(curves, "Loss"))
    if any("accuracy" in entry for entry in log):
        parts.append(plot({"accuracy": series(log, "accuracy")}, "Accuracy on held-out photos"))
    parts.append(plot({"learning rate": series(log, "lr")}, "Learning rate"))
    picture = held_out_pictures(trained, results)
    if picture is not None:
        captions = {
            "depth": "photo, true depth, predicted depth, error (white: a factor of two); near is bright",
            "segmentation": "photo, true classes, predicted classes, errors",
        }
        parts.append(f"<figure>{image(picture)}<figcaption>{captions[task]}</figcaption></figure>")
    parts.append(table(["set", "photos"], [text.rsplit(": ", 1) for text in document["data"]], "Training data"))
    settings = [[key, json.dumps(value)] for key, value in document["config"].items()]
    parts.append(table(["setting", "value"], settings, "Settings"))
    return page("dune train", parts)


def held_out_pictures(trained: TrainedHead, results: Sequence[HeldOutResult]) -> np.ndarray | None:
    """(H, W, 3) uint8: a row a held-out photo, spread over the sets; None for a head for whole images."""
    if trained.config.task == "classification":
        return None
    rows = []
    for one in results[:: max(1, len(results) // PICTURES)][:PICTURES]:
        example, key = trained.cache.examples[one.row.example], trained.cache.key
        rgb = read_photo(example.photo).rgb
        view = draw_view(example.name, 0, rgb.shape[1], rgb.shape[0], key.patch, key.size_px, key.seed)
        tiles = [view_image(rgb, view).permute(1, 2, 0).numpy()]
        tiles += _depth_tiles(one) if trained.config.task == "depth" else _class_tiles(one, trained)
        rows.append(np.concatenate([_tile(tile) for tile in tiles], 1))
    return np.concatenate(rows) if rows else None


def _depth_tiles(one: HeldOutResult) -> list[np.ndarray]:
    predicted, known = np.exp(one.result.astype(np.float64)), one.target > 0
    true = np.where(known, one.target, 0).astype(np.float64)
    if one.kind == "disparity":
        true = np.where(known, 1 / np.maximum(true, 1e-3), 0)
    if not known.any():
        return [colored(true, "turbo"), colored(predicted, "turbo"), np.zeros((*true.shape, 3), np.uint8)]
    fitted = metrics.align(predicted[known], true[known], "median")
    error = np.zeros(true.shape)
    error[known] = np.abs(np.log(np.maximum(fitted, 1e-3) / true[known])) / WORST_LOG_RATIO
    grey = np.repeat((error.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, -1)
    return [colored(true, "turbo"), colored(predicted, "turbo"), grey]


def _class_tiles(one: HeldOutResult, trained: TrainedHead) -> list[np.ndarray]:
    colors = np.array(palette_of(trained.dataset.classes), np.uint8)
    true, predicted = _true_classes(one), one.result.argmax(0)
    known = true != 255
    shown = np.where(known[..., None], colors[np.where(known, true, 0)], 0).astype(np.uint8)
    wrong = ((true != predicted) & known).astype(np.uint8) * 255
    return [shown, colors[predicted], np.repeat(wrong[..., None], 3, -1)]


def _tile(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(TILE_PX[::-1], Image.Resampling.NEAREST))
