"""What a run learned, as JSON and as one HTML file that needs nothing else: numbers, curves, pictures, licences."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli import __version__
from dune_cli.io.atomic import atomic_path
from dune_cli.io.jsons import write_json
from dune_cli.training.config import as_json
from dune_cli.training.distill import LOG, Trained
from dune_cli.training.held_out import HeldOut

SCHEMA = "dune.distill/1"
COLOURS = ("#0b6e99", "#c4572f", "#4a7c2f", "#8a4fa3", "#b08900", "#555555", "#d23f74", "#2f8f83")


def document(trained: Trained, scores: Sequence[HeldOut], parameters: int, output: Path) -> dict[str, Any]:
    """The report's content (schema `dune.distill/1`)."""
    return {
        "schema": SCHEMA,
        "dune": __version__,
        "config": as_json(trained.config),
        "student": {"name": trained.config.student, "parameters": parameters},
        "teachers": {
            name: {
                "licence": teacher.source.licence,
                "sha256": teacher.source.sha256,
                "token_types": list(teacher.widths),
                "width": max(teacher.widths.values()),
                "note": teacher.note,
            }
            for name, teacher in trained.teachers.items()
        },
        "photos": {
            "train": sum(trained.photos.sizes),
            "held_out": len(trained.photos.held_out),
            "broken": trained.photos.broken,
        },
        "held_out": [asdict(score) for score in scores],
        "steps": trained.steps_done,
        "this_run": {
            "images": trained.images,
            "hours": round(trained.seconds / 3600, 4),
            "images_per_second": round(trained.images / max(trained.seconds, 1e-9), 3),
        },
        "log": read_log(output / LOG),
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The run's log: for a step that was logged twice (a killed run went on) the later entry."""
    entries: dict[int, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line that a kill cut off
                continue
            entries[entry["step"]] = entry
    return [entries[step] for step in sorted(entries)]


def write(folder: Path, content: dict[str, Any], pictures: Sequence[tuple[str, np.ndarray]]) -> tuple[Path, Path]:
    """Writes `report.json` and `report.html`; pictures are (caption, (H, W, 3) uint8)."""
    write_json(folder / "report.json", content)
    target = folder / "report.html"
    with atomic_path(target) as temporary:
        temporary.write_text(_page(content, pictures), encoding="utf-8")
    return folder / "report.json", target


def pca_picture(rows: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]], size_px: int = 160) -> np.ndarray:
    """Rows of a photo (S, S, 3) uint8 beside PCA colours of token maps (h, w, D); (H, W, 3) uint8."""
    from PIL import Image

    def tile(picture: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.array(Image.fromarray(picture).resize((size_px, size_px), how))

    lines = []
    for photo, maps in rows:
        tiles = [tile(photo, Image.Resampling.BICUBIC)]
        tiles += [tile(_pca_colours(tokens), Image.Resampling.NEAREST) for tokens in maps]
        lines.append(np.concatenate(tiles, axis=1))
    return np.concatenate(lines, axis=0)


def _pca_colours(tokens: np.ndarray) -> np.ndarray:
    flat = torch.from_numpy(np.ascontiguousarray(tokens.reshape(-1, tokens.shape[-1]))).double()
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    signs = torch.sign(directions[:3].sum(1, keepdim=True))
    values = flat @ (directions[:3] * signs).T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    scaled = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return (scaled.reshape(*tokens.shape[:2], 3).numpy() * 255).astype(np.uint8)


def _page(content: dict[str, Any], pictures: Sequence[tuple[str, np.ndarray]]) -> str:
    config, log = content["config"], content["log"]
    names = list(content["teachers"])
    losses = {"loss": _series(log, "loss")}
    for name in names:
        for kind in content["teachers"][name]["token_types"]:
            losses[f"{name} {kind} 1 - cosine"] = _series(log, f"{name}/{kind}/cosine")
    shares = {name: _series(log, f"{name}/coefficient") for name in names}
    dropped = {name: _series(log, f"{name}/dropped") for name in names}
    parts = [
        f"<h1>{html.escape(config['student'])} distilled from {html.escape(', '.join(names))}</h1>",
        _table(
            ["teacher", "tokens", "student", "untrained student", "mean feature", "student, mean removed", "photos"],
            [
                [
                    s["teacher"],
                    s["kind"],
                    *(f"{s[k]:.3f}" for k in ("student", "untrained", "mean_feature")),
                    f"{s['standardised']:.3f}",
                    s["photos"],
                ]
                for s in content["held_out"]
            ],
            "Cosine to the teachers on photos that training never saw",
        ),
        _plot(losses, "Training losses"),
        _plot(shares, "Coefficients: each teacher's share of the loss"),
        _plot(dropped, "Dropped: share of images that did not train the teacher's projector"),
        *(f"<figure>{_image(image)}<figcaption>{html.escape(text)}</figcaption></figure>" for text, image in pictures),
        _table(
            ["teacher", "licence", "width", "note"],
            [[name, t["licence"], t["width"], t["note"]] for name, t in content["teachers"].items()],
            "Teachers",
        ),
        _table(["setting", "value"], [[k, json.dumps(v)] for k, v in config.items()], "Settings"),
        _table(
            ["what", "value"],
            [
                ["student parameters", f"{content['student']['parameters']:,}"],
                ["photos trained on / held out", f"{content['photos']['train']} / {content['photos']['held_out']}"],
                ["photos that could not be read", len(content["photos"]["broken"])],
                ["steps", content["steps"]],
                ["this run: images, hours, images/s", ", ".join(map(str, content["this_run"].values()))],
            ],
            "The run",
        ),
    ]
    style = (
        "body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.2rem .8rem;"
        "text-align:left}caption{text-align:left;font-weight:600;padding:.3rem 0}figure{margin:1.5rem 0}"
        "img{image-rendering:pixelated;max-width:100%}"
    )
    head = f"<!doctype html><meta charset=utf-8><title>dune distill</title><style>{style}</style>"
    return head + "\n".join(parts)


def _series(log: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in log if name in entry]


def _plot(series: dict[str, list[tuple[float, float]]], title: str, width: int = 760, height: int = 240) -> str:
    """Curves as inline SVG with their names, axes' ends written out."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = min(0.0, *(p[1] for p in points)), max(p[1] for p in points)

    def at(point: tuple[float, float]) -> str:
        x = 50 + (width - 60) * (point[0] - x_low) / max(x_high - x_low, 1e-9)
        y = height - 25 - (height - 40) * (point[1] - y_low) / max(y_high - y_low, 1e-9)
        return f"{x:.1f},{y:.1f}"

    lines, legend = [], []
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(map(at, line))}"/>')
        legend.append(f'<span style="color:{colour}">■</span> {html.escape(name)}')
    axes = (
        f'<line x1="50" y1="{height - 25}" x2="{width - 10}" y2="{height - 25}" stroke="#999"/>'
        f'<line x1="50" y1="15" x2="50" y2="{height - 25}" stroke="#999"/>'
        f'<text x="46" y="22" text-anchor="end" font-size="12">{y_high:.3g}</text>'
        f'<text x="46" y="{height - 25}" text-anchor="end" font-size="12">{y_low:.3g}</text>'
        f'<text x="50" y="{height - 8}" font-size="12">step {x_low:g}</text>'
        f'<text x="{width - 10}" y="{height - 8}" text-anchor="end" font-size="12">{x_high:g}</text>'
    )
    return (
        f"<figure><figcaption><b>{html.escape(title)}</b></figcaption>"
        f'<svg width="{width}" height="{height}">{axes}{"".join(lines)}</svg><br>{" &nbsp; ".join(legend)}</figure>'
    )


def _table(head: list[str], rows: list[list[Any]], caption: str) -> str:
    def line(cells: list[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{line(head, 'th')}{body}</table>"


def _image(picture: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
