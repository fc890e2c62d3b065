"""A trained student as a file that the one encoder loader, or timm, reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dune_cli.checkpoints import adapters, inventory, weight_files, weights_folder
from dune_cli.errors import JobFailed
from dune_cli.io.outputs import atomic_path
from dune_cli.models.dune_mini import MiniEncoder
from dune_cli.provenance import Source
from dune_cli.training.common.dataset import centre_square
from dune_cli.training.common.html import pca_picture
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.distill import report
from dune_cli.training.distill.distiller import Trained, fresh_student
from dune_cli.training.distill.held_out import HeldOut, held_out_scores
from dune_cli.training.distill.projectors import TransformerProjector
from dune_cli.training.distill.students import Student, TimmStudent
from dune_cli.training.distill.teacher_norm import RunningTokenNorm


def published_tree(student: Student, norms: nn.ModuleDict) -> dict[str, dict[str, torch.Tensor]]:
    """Encoder, projectors and teacher norms in the published names of DUNE's layout.

    Only the paper's projectors (`tp`) have a place in that layout; others stay in the run's checkpoints.
    """
    chunk = "" if isinstance(student.encoder, MiniEncoder) else "0."
    state = {}
    for key, value in student.encoder.state_dict().items():
        state["encoder." + key.replace("blocks.", f"blocks.{chunk}", 1)] = value
    for name, projector in student.projectors.items():
        if isinstance(projector, TransformerProjector):
            for key, value in projector.projector.state_dict().items():
                state[f"projectors.{name}.{key}"] = value
    for name, kinds in norms.items():
        for kind, norm in kinds.items():
            if not isinstance(norm, RunningTokenNorm):
                continue  # PHI-S has no place in the layout; its statistics stay in the run's checkpoints
            for key, value in norm.state_dict().items():
                state[f"teacher_norms.{name}.normalizers.{kind}.{key}"] = value
    return {"model": {key: value.detach().cpu().contiguous() for key, value in state.items()}}


def write_student(path: Path, student: Student, norms: nn.ModuleDict, licence: str, dtype: torch.dtype) -> None:
    """Writes `path` (.safetensors), whole or not at all.

    A timm student is written as timm's own state dict, which `timm.create_model(name, checkpoint_path=path)` loads.
    Any other is written in our layout, whose header names it; `dtype` float16 halves the file. JobFailed when it cannot
    be written.
    """
    if isinstance(student.encoder, TimmStudent):
        tensors = student.encoder.model.state_dict()
        header = {"timm": student.encoder.name}
    else:
        tensors, header = adapters.to_safetensors(published_tree(student, norms))
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            weight_files.write_safetensors(temporary, tensors, {**header, "dune.licence": licence})
    except OSError as error:
        why = error.strerror or error
        raise JobFailed(f"cannot write {path} ({why}); make room and run the same command again") from error


def licence_of(teachers: Mapping[str, Source], stem: Mapping[str, Source], init: str | None = None) -> str:
    """The header's licence text: whose outputs the student learned from, and whose weights it started from.

    init: the name or file of `--init`.
    """
    text = "distilled by dune from: " + json.dumps({n: s.licence for n, s in teachers.items()}, sort_keys=True)
    if stem:
        text += "; stem: " + json.dumps({s.name: s.licence for s in stem.values()}, sort_keys=True)
    if init is not None:
        located = weights_folder.locate(init)
        licence = inventory.licence_of(located, weight_files.read_located(located).metadata)
        text += f"; started from {located.entry.name if located.entry else located.path.name}: {licence}"
    return text


# After the last step: held-out scores beside controls, the student's files, pictures, the report.


PICTURES = 4


@dataclass(frozen=True)
class FinishedDistillation:
    """The files of a finished run and its report."""

    student: Path
    student_half: Path
    report_json: Path
    report_html: Path
    scores: list[HeldOut]
    document: dict[str, Any]


def finish(trained: Trained, output: Path) -> FinishedDistillation:
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


def _report(
    trained: Trained, files: list[Path], output: Path, grid: tuple[int, int], device: torch.device
) -> FinishedDistillation:
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
    return FinishedDistillation(*files, *report.write(output, content, pictures), scores, content)


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
