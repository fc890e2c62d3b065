"""Self-contained HTML reports: the page, tables, curves as SVG, embedded pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

COLOURS = ("#0b6e99", "#c4572f", "#4a7c2f", "#8a4fa3", "#b08900", "#555555", "#d23f74", "#2f8f83")


def pca_grid(rows: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]], size_px: int = 160) -> np.ndarray:
    """A picture (H, W, 3) uint8: each row a photo (S, S, 3) uint8 and its token maps (h, w, D) in PCA colours.

    size_px: side of each tile.
    """
    from PIL import Image

    def tile(picture: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        return np.array(Image.fromarray(picture).resize((size_px, size_px), resampling))

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
    directions = torch.nn.functional.pad(
        directions[:3], (0, 0, 0, max(0, 3 - len(directions)))
    )  # of fewer than 3 tokens
    signs = torch.where(directions.sum(1, keepdim=True) < 0, -1.0, 1.0)
    values = flat @ (directions * signs).T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    scaled = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return (scaled.reshape(*tokens.shape[:2], 3).numpy() * 255).astype(np.uint8)


def series(log: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of one number in the log's entries."""
    return [(entry["step"], entry[name]) for entry in log if name in entry]


def plot(curves: dict[str, list[tuple[float, float]]], title: str, width: int = 760, height: int = 240) -> str:
    """Curves as an inline SVG figure with a legend and the ends of the axes; "" without points. width, height: px."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = min(0.0, *(p[1] for p in points)), max(p[1] for p in points)

    def to_pixels(point: tuple[float, float]) -> str:
        x = 50 + (width - 60) * (point[0] - x_low) / max(x_high - x_low, 1e-9)
        y = height - 25 - (height - 40) * (point[1] - y_low) / max(y_high - y_low, 1e-9)
        return f"{x:.1f},{y:.1f}"

    lines, legend = [], []
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        lines.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(map(to_pixels, curve))}"/>'
        )
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


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page with its style."""
    style = (
        "body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.2rem .8rem;"
        "text-align:left}caption{text-align:left;font-weight:600;padding:.3rem 0}figure{margin:1.5rem 0}"
        "img{image-rendering:pixelated;max-width:100%}"
    )
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    return head + "\n".join(parts)


def table(head: list[str], rows: list[list[Any]], caption: str) -> str:
    """An HTML table with escaped cells."""

    def row_html(cells: list[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row_html(row, "td") for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{row_html(head, 'th')}{body}</table>"


def image(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 as an img element with the PNG embedded."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
