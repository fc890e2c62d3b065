"""After the last step: held-out scores beside controls, the student's files, pictures, the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.errors import DuneError
from dune_cli.training import report
from dune_cli.training.distill import Trained
from dune_cli.training.export import licence_of, write_student
from dune_cli.training.held_out import HeldOut, held_out_scores
from dune_cli.training.photos import centre_crop
from dune_cli.training.students import Student, build_encoder

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
    """Writes student.safetensors, student_fp16.safetensors, report.json and report.html into `output`."""
    config, teachers = trained.config, trained.teachers
    device = next(trained.student.parameters()).device
    student, norms = trained.student.eval(), trained.norms.eval()
    grid = (config.size_px // student.encoder.patch,) * 2
    generator = torch.Generator().manual_seed(config.seed)
    widths = {name: teacher.widths for name, teacher in teachers.items()}
    untrained = Student(build_encoder(config.student, config.size_px, generator), widths, config.projector, generator)
    untrained = untrained.to(device).eval()

    scores = held_out_scores(student, untrained, teachers, norms, trained.photos.held_out, config.size_px, grid, device)
    licence = licence_of({name: teacher.source.licence for name, teacher in teachers.items()})
    files = [output / "student.safetensors", output / "student_fp16.safetensors"]
    for path, dtype in zip(files, (torch.float32, torch.float16)):
        write_student(path, student, norms, licence, dtype)
    parameters = sum(parameter.numel() for parameter in student.encoder.parameters())
    content = report.document(trained, scores, parameters, output)
    names = ", ".join(teachers)
    caption = f"Held-out photos; first three principal components of the student's patches, then of {names}"
    rows = _pictures(trained, grid, device)
    pictures = [(caption, report.pca_picture(rows))] if rows else []
    return Finished(*files, *report.write(output, content, pictures), scores, content)


@torch.inference_mode()
def _pictures(
    trained: Trained, grid: tuple[int, int], device: torch.device
) -> Sequence[tuple[np.ndarray, list[np.ndarray]]]:
    rows = []
    for item in trained.photos.held_out[:PICTURES]:
        try:
            photo = centre_crop(item, trained.config.size_px)
        except (OSError, ValueError, SyntaxError, DuneError):
            continue
        images = photo[None].to(device)
        tokens = trained.student.encoder.intermediate(images, (-1,), norm=False)[0]
        maps = [tokens.map()[0].float().cpu().numpy()]
        for teacher in trained.teachers.values():
            patches = teacher(images, grid)["patch"]
            maps.append(patches[0].unflatten(0, grid).cpu().numpy())
        rows.append(((photo.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), maps))
    return rows
