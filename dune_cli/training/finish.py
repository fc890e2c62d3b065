"""After the last step: held-out scores beside controls, the student's files, pictures, the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.training import report
from dune_cli.training.distill import Trained, fresh_student
from dune_cli.training.export import licence_of, write_student
from dune_cli.training.folder import RunFolder
from dune_cli.training.held_out import HeldOut, held_out_scores
from dune_cli.training.photos import centre_square
from dune_cli.training.report_parts import pca_picture

PICTURES = 4


@dataclass(frozen=True)
class Finished:
    """The files of a finished run and its report."""

    student: Path
    student_half: Path
    report_json: Path
    report_html: Path
    scores: list[HeldOut]
    document: dict[str, Any]


def finish(trained: Trained, output: Path) -> Finished:
    """Writes student.safetensors, student_fp16.safetensors, report.json and report.html into `output`.

    JobFailed when they cannot be written.
    """
    config, teachers = trained.config, trained.teachers
    device = next(trained.student.parameters()).device
    student, norms = trained.student.eval(), trained.norms.eval()
    grid = (config.size_px // student.encoder.patch,) * 2
    sources = {name: teacher.source for name, teacher in teachers.items()}
    licence = licence_of(sources, getattr(student.encoder, "open_stem", {}), config.init)
    files = [output / "student.safetensors", output / "student_fp16.safetensors"]
    for path, dtype in zip(files, (torch.float32, torch.float16)):
        write_student(path, student, norms, licence, dtype)

    with torch.compiler.set_stance("force_eager"):  # a compiled student need not be compiled again for other sizes
        return _report(trained, files, output, grid, device)


def _report(trained: Trained, files: list[Path], output: Path, grid: tuple[int, int], device: torch.device) -> Finished:
    config, teachers, photos = trained.config, trained.teachers, trained.photos
    student, norms = trained.student, trained.norms
    untrained = fresh_student(config, {name: teacher.widths for name, teacher in teachers.items()}).to(device).eval()
    scores = held_out_scores(student, untrained, teachers, norms, photos, config.size_px, grid, device)
    parameters = sum(parameter.numel() for parameter in student.encoder.parameters())
    content = report.document(trained, scores, parameters, RunFolder(output))
    names = ", ".join(teachers)
    caption = f"Held-out photos; first three principal components of the student's patches, then of {names}"
    rows = _pictures(trained, grid, device)
    pictures = [(caption, pca_picture(rows))] if rows else []
    return Finished(*files, *report.write(output, content, pictures), scores, content)


@torch.inference_mode()
def _pictures(
    trained: Trained, grid: tuple[int, int], device: torch.device
) -> Sequence[tuple[np.ndarray, list[np.ndarray]]]:
    rows = []
    for item in trained.photos.held_out[:PICTURES]:
        image = trained.photos.read(item)
        if image is None:
            continue
        photo = centre_square(image, trained.config.size_px)
        images = photo[None].to(device)
        tokens = trained.student.encoder.intermediate(images, (-1,), norm=False)[0]
        maps = [tokens.map()[0].float().cpu().numpy()]
        for teacher in trained.teachers.values():
            patches = teacher(images, grid)["patch"]
            maps.append(patches[0].unflatten(0, grid).cpu().numpy())
        rows.append(((photo.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), maps))
    return rows
