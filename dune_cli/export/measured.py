"""What an exported file is worth: how near its outputs are to torch's on photos, and how long it takes beside torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.errors import UserError
from dune_cli.export.networks import ExportNetwork
from dune_cli.export.session import OnnxSession
from dune_cli.io.photos import read_photo
from dune_cli.io.preprocess import stretch
from dune_cli.models.heads import input_size

MOST_CALIBRATION, MOST_MEASURED = 16, 8  # photos
REPEATS = 3  # of a timing, of which the shortest counts
Images = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class PhotoSplit:
    """calibration: the photos that fix the ranges. measured: others, for the cosine; the same ones where there are no
    others."""

    calibration: list[Path]
    measured: list[Path]

    @property
    def held_out(self) -> bool:
        """Whether the cosine is measured on other photos than those of the calibration."""
        return not set(self.calibration) & set(self.measured)


def split(paths: Sequence[Path]) -> PhotoSplit:
    """Photos spread evenly over `paths`: every third for the cosine, the others for the calibration."""
    measured = _spread(paths[2::3] or paths, MOST_MEASURED)
    rest = [path for path in paths if path not in set(measured)]
    return PhotoSplit(_spread(rest or paths, MOST_CALIBRATION), measured)


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    if len(paths) <= most:
        return list(paths)
    return [paths[round(step * (len(paths) - 1) / (most - 1))] for step in range(most)]


def checked_size(network: ExportNetwork, size_px: int | None) -> int:
    """The long side of a photo: `size_px`, by default the model's own. UserError for one of less than two patches, or
    that is no multiple of the patch."""
    if size_px is None:
        return network.size_px
    if size_px % network.patch or size_px < 2 * network.patch:
        near = max(2, size_px // network.patch) * network.patch
        raise UserError(
            f"--size {size_px} is no multiple of the patch of {network.sources[0].name}, {network.patch} px, from "
            f"{2 * network.patch} on; give {near} or {near + network.patch}"
        )
    return size_px


def photo_inputs(network: ExportNetwork, paths: Sequence[Path], long_px: int) -> list[Images]:
    """Each photo as the network's input: the whole photo, its long side about `long_px`, in whole patches.

    A two-view network gets each photo with the next one.
    """
    prepared = []
    for path in paths:
        rgb = read_photo(path).rgb
        height, width = (max(2 * network.patch, side) for side in input_size(*rgb.shape[:2], network.patch, 1, long_px))
        prepared.append(torch.from_numpy(stretch(rgb, width, height).image)[None])
    views = len(network.inputs)
    return [tuple(prepared[(index + view) % len(prepared)] for view in range(views)) for index in range(len(prepared))]


def cosines(network: ExportNetwork, session: OnnxSession, inputs: Sequence[Images]) -> dict[str, dict[str, float]]:
    """Of each output the cosine to torch's: the mean over its vectors (of maps the channels, of the rest an image), and
    the value that 1 % of them fall below."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in network.outputs}
    for images in inputs:
        with torch.inference_mode():
            expected = network.original(*images)
        answers = session.run(*images)
        for name, theirs in zip(network.outputs, expected):
            axis = _channels(name, theirs)
            cosine = torch.nn.functional.cosine_similarity(_rows(answers[name], axis), _rows(theirs, axis), dim=1)
            found[name].append(cosine.numpy())
    return {
        name: {"mean": float(np.concatenate(all_).mean()), "p1": float(np.percentile(np.concatenate(all_), 1))}
        for name, all_ in found.items()
    }


def _channels(name: str, values: torch.Tensor) -> int | None:
    """The axis of the vectors that are compared; None: the whole of an image is one."""
    if name in ("cls", "registers", "patches") or name.startswith(("points", "descriptors")):
        return values.ndim - 1
    return 1 if name in ("logits", "scene_logits") else None


def _rows(values: torch.Tensor, axis: int | None) -> torch.Tensor:
    if axis is None:
        return values.flatten(1).double()
    return values.movedim(axis, -1).flatten(0, -2).double()


def timings(network: ExportNetwork, sessions: dict[str, OnnxSession], images: Images) -> dict[str, Any]:
    """Seconds of one pass of one photo, by torch and by each session: of the clock and of all processors together, the
    shortest of some passes, taken in turns."""
    runs: dict[str, Callable[[], Any]] = {"torch float32": lambda: network.original(*images)}
    for name, session in sessions.items():
        runs[name] = lambda session=session: session.run(*images)  # type: ignore[misc]
    best = {name: (float("inf"), float("inf")) for name in runs}
    with torch.inference_mode():
        for repeat in range(REPEATS + 1):
            for name, run in runs.items():
                clock, processor = time.perf_counter(), time.process_time()
                run()
                spent = time.perf_counter() - clock, time.process_time() - processor
                if repeat:  # the first pass warms up
                    best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    sizes = [list(one.shape[-2:]) for one in images]
    return {
        "height_width": sizes[0] if len(sizes) == 1 else sizes,
        "threads": torch.get_num_threads(),
        "seconds": {name: round(clock, 4) for name, (clock, _) in best.items()},
        "processor_seconds": {name: round(processor, 4) for name, (_, processor) in best.items()},
    }
