"""The report of a run, as JSON and as one self-contained HTML file: scores, curves, pictures, licences."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.io.json_files import write_json
from dune_cli.io.outputs import atomic_path
from dune_cli.provenance import Run
from dune_cli.training.common.html import image, page, plot, series, table
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.distill.distiller import DistilledStudent
from dune_cli.training.distill.held_out import HeldOutScore

SCHEMA = "dune.distill/1"


def document(
    result: DistilledStudent, scores: Sequence[HeldOutScore], parameters: int, folder: RunFolder
) -> dict[str, Any]:
    """The content of report.json (`dune.distill/1`, docs/file-formats.md). parameters: of the encoder."""
    config, log = result.config, folder.read_log()
    seconds = log[-1]["seconds"] if log else result.seconds
    sources = [teacher.source for teacher in result.teachers.values()]
    sources += [teacher.gate for teacher in result.teachers.values() if teacher.gate is not None]
    broken = folder.read_broken() | result.dataset.broken
    return {
        "schema": SCHEMA,
        "config": config.as_json(),
        "student": {
            "name": config.student,
            "parameters": parameters,
            "open_stem": {
                part: {"name": source.name, "licence": source.licence, "sha256": source.sha256}
                for part, source in getattr(result.student.encoder, "open_stem", {}).items()
            },
        },
        "teachers": {
            name: {
                "licence": teacher.source.licence,
                "sha256": teacher.source.sha256,
                "token_types": list(teacher.widths),
                "width": max(teacher.widths.values()),
                "gate": None if teacher.gate is None else teacher.gate.name,
                "note": teacher.note,
            }
            for name, teacher in result.teachers.items()
        },
        "photos": {
            "train": sum(result.dataset.group_sizes),
            "held_out": len(result.dataset.held_out),
            "broken_count": len(broken),
            "broken": broken,
        },
        "held_out": [asdict(score) for score in scores],
        "steps": config.steps,
        "images": config.steps * config.batch_size,
        "hours": round(seconds / 3600, 5),
        "images_per_second": round(config.steps * config.batch_size / max(seconds, 1e-9), 3),
        "cache": None
        if result.cache_bytes is None
        else {"bytes": result.cache_bytes, "filling_seconds_of_this_call": round(result.cache_seconds, 1)},
        "log": log,
        "provenance": Run(config.seed, {"training": seconds, "cache": result.cache_seconds}).provenance(
            sources, [], units="losses and cosines have none"
        ),
    }


def write(folder: Path, content: dict[str, Any], pictures: Sequence[tuple[str, np.ndarray]]) -> tuple[Path, Path]:
    """Writes report.json and report.html and returns their paths. pictures: (caption, (H, W, 3) uint8)."""
    json_path, html_path = folder / "report.json", folder / "report.html"
    write_json(json_path, content)
    with atomic_path(html_path) as temporary:
        temporary.write_text(_page(content, pictures), encoding="utf-8")
    return json_path, html_path


def _page(content: dict[str, Any], pictures: Sequence[tuple[str, np.ndarray]]) -> str:
    config, log = content["config"], content["log"]
    names = list(content["teachers"])
    losses = {"loss": series(log, "loss")}
    for name in names:
        for kind in content["teachers"][name]["token_types"]:
            losses[f"{name} {kind} 1 - cosine"] = series(log, f"{name}/{kind}/cosine")
    shares = {name: series(log, f"{name}/coefficient") for name in names}
    dropped = {name: series(log, f"{name}/dropped") for name in names}
    speed = {"images a second": series(log, "images_per_second")}
    parts = [
        f"<h1>{html.escape(config['student'])} distilled from {html.escape(', '.join(names))}</h1>",
        table(
            [
                "teacher",
                "tokens",
                "student",
                "untrained student",
                "mean feature",
                "student, mean removed",
                "untrained, mean removed",
                "tokens that are not zero",
                "photos",
            ],
            [
                [
                    s["teacher"],
                    s["kind"],
                    *(f"{s[k]:.3f}" for k in ("student", "untrained", "mean_feature")),
                    f"{s['standardised']:.3f}",
                    f"{s['untrained_standardised']:.3f}",
                    f"{s['tokens']:.0%}",
                    s["photos"],
                ]
                for s in content["held_out"]
            ],
            "Cosine to the teachers on photos that training never saw",
        ),
        plot(losses, "Training losses"),
        plot(shares, "Coefficients: each teacher's share of the loss"),
        plot(dropped, "Dropped: share of images that did not train the teacher's projector"),
        plot(speed, "Speed since the last start"),
        *(
            f"<figure>{image(picture)}<figcaption>{html.escape(text)}</figcaption></figure>"
            for text, picture in pictures
        ),
        table(
            ["teacher", "licence", "width", "note"],
            [[name, t["licence"], t["width"], t["note"]] for name, t in content["teachers"].items()],
            "Teachers",
        ),
        table(["setting", "value"], [[k, json.dumps(v)] for k, v in config.items()], "Settings"),
        table(
            ["what", "value"],
            [
                ["student parameters", f"{content['student']['parameters']:,}"],
                ["photos trained on / held out", f"{content['photos']['train']} / {content['photos']['held_out']}"],
                ["photos that could not be read", len(content["photos"]["broken"])],
                ["steps / images", f"{content['steps']} / {content['images']}"],
                ["hours, the teacher cache apart", content["hours"]],
                ["images a second", content["images_per_second"]],
            ],
            "The run",
        ),
        *(
            [table(["photo", "why"], [[*pair] for pair in broken.items()], "Photos that could not be read")]
            if (broken := content["photos"]["broken"])
            else []
        ),
    ]
    return page("dune distill", parts)
