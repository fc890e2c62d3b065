"""The end of a run: scores on held-out pictures, the head's file, report.json and report.html."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.bodies.fit_targets import ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M
from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.adapters import people_head as adapter
from dune_cli.io.json_files import write_json
from dune_cli.io.meshes import Mesh
from dune_cli.io.outputs import atomic_path
from dune_cli.io.rendering import overlay
from dune_cli.models.people_head import HeadedPeople, PeopleHeadCard
from dune_cli.provenance import Run
from dune_cli.training.common.export import licences_text, write_full_and_half
from dune_cli.training.common.html import image, page, plot, series, table
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.human.feature_cache import PictureRow
from dune_cli.training.human.scores import score_pictures
from dune_cli.training.human.trainer import TrainedPeopleHead

SCHEMA = "dune.people-head-report/1"
PICTURES = 8  # of each kind, in the report
COLUMNS = 4
CORNER_TO_CENTRE = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])


@dataclass(frozen=True)
class FinishedPeopleHead:
    """The files of a run, and what its report says."""

    head: Path
    head_half: Path
    report_json: Path
    report_html: Path
    document: dict[str, Any]


def finish(trained: TrainedPeopleHead, output: Path) -> FinishedPeopleHead:
    """Writes head.safetensors (float32), head_fp16.safetensors, report.json and report.html into `output`.

    JobFailed when they cannot be written.
    """
    kinds = {"photos": False, "made-up pictures": True}
    rows = {
        name: [row for row in trained.cache.rows if row.held_out and row.made == made] for name, made in kinds.items()
    }
    card = _card(trained, {})
    model = HeadedPeople(trained.encoder, trained.head, card).eval()
    scores = {
        name: score_pictures(model, trained.teacher.body, [trained.cache.picture(row) for row in part])
        for name, part in rows.items()
        if part
    }
    card = _card(trained, scores)
    tensors, header = adapters.to_safetensors(adapter.checkpoint_of(trained.head, card))
    files = write_full_and_half(output, "head", tensors, header | {"dune.licence": card.licence})
    document = report_document(trained, RunFolder(output), card, scores)
    write_json(output / "report.json", document)
    target = output / "report.html"
    pictures = {name: held_out_pictures(trained, model, part) for name, part in rows.items() if part}
    with atomic_path(target) as temporary:
        temporary.write_text(report_page(document, pictures), encoding="utf-8")
    return FinishedPeopleHead(*files, output / "report.json", target, document)


def _card(trained: TrainedPeopleHead, measured: Mapping[str, Any]) -> PeopleHeadCard:
    learned = [row for row in trained.cache.rows if not row.held_out]
    photos = {row.photo for row in learned if not row.made}
    people = sum(int(trained.cache.photos[photo][1].trusted.sum()) for photo in photos)
    return PeopleHeadCard(
        encoder=trained.encoder_source.name,
        encoder_sha256=str(trained.encoder_source.sha256),
        licence="trained by dune on " + licences_text({s.name: s.licence for s in trained.sources}),
        assumed_height=ASSUMED_STATURE_M,
        assumed_height_sd=ASSUMED_STATURE_SD_M,
        data=(f"photos: {len(photos)}, with {people} people", f"made-up pictures: {sum(row.made for row in learned)}"),
        measured={"validation": dict(measured)},
    )


def report_document(
    trained: TrainedPeopleHead, folder: RunFolder, card: PeopleHeadCard, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of report.json."""
    log = folder.read_log()
    seconds = log[-1]["seconds"] if log else trained.seconds
    return {
        "schema": SCHEMA,
        "config": trained.config.as_json(),
        "head": {
            "features": [feature.name for feature in trained.head.config.features],
            "joints": list(trained.head.config.joints),
            "parameters": sum(parameter.numel() for parameter in trained.head.parameters()),
        },
        "encoder": {"name": card.encoder, "sha256": card.encoder_sha256},
        "data": list(card.data),
        "best_step": trained.best_step,
        "validation_loss": trained.best_loss,
        "held_out": dict(scores),
        "seconds": seconds,
        "cache_bytes": trained.cache.bytes,
        "log": log,
        "provenance": Run(trained.config.seed, {"training": seconds}).provenance(trained.sources, []),
    }


def report_page(document: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> str:
    """report.html: scores, curves, held-out pictures, settings."""
    log, scores = document["log"], document["held_out"]
    parts = [f"<h1>A head for people on {html.escape(document['encoder']['name'])}</h1>"]
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    rows = [[kind, *(row.get(name, "") for name in names)] for kind, row in scores.items()]
    parts.append(table(["held out", *names], rows, "Held-out pictures"))
    parts.append(plot({"training": series(log, "loss"), "validation": series(log, "validation")}, "Loss"))
    losses = [name for entry in log for name in entry if name.startswith("held-out ")]
    for name in dict.fromkeys(losses):
        parts.append(plot({name: series(log, name)}, name))
    for name, picture in pictures.items():
        parts.append(f"<figure>{image(picture)}<figcaption>{html.escape(name)}, held out</figcaption></figure>")
    settings = [[key, json.dumps(value)] for key, value in document["config"].items()]
    parts.append(table(["setting", "value"], settings, "Settings"))
    return page("dune train human", parts)


def held_out_pictures(trained: TrainedPeopleHead, model: HeadedPeople, rows: Sequence[PictureRow]) -> np.ndarray:
    """(H, W, 3) uint8: pictures with the bodies found drawn over them, COLUMNS in a line."""
    tiles = [
        drawn(model, trained, *trained.cache.picture(row)[:1])
        for row in rows[:: max(1, len(rows) // PICTURES)][:PICTURES]
    ]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    lines = [np.concatenate(tiles[first : first + COLUMNS], 1) for first in range(0, len(tiles), COLUMNS)]
    return np.concatenate(lines)


@torch.inference_mode()
def drawn(model: HeadedPeople, trained: TrainedPeopleHead, rgb: np.ndarray) -> np.ndarray:
    """The picture (S, S, 3) with the bodies found in it, by the camera that is assumed where none is known."""
    body = trained.teacher.body
    (found,) = model(torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].float() / 255)
    if not len(found):
        return rgb
    rotations = torch.eye(3).repeat(len(found), len(body.joint_names), 1, 1)
    rotations[:, [body.joint_names.index(name) for name in model.joints]] = found.rotations
    posed = body(rotations, found.shape)
    vertices = (posed.vertices + (found.head - posed.joints[:, body.head])[:, None]).double().numpy()
    faces = body.faces.numpy()
    return overlay(rgb, [Mesh(one, faces) for one in vertices], CORNER_TO_CENTRE @ found.K.double().numpy())
