"""After the last step: the student's weight files, scores on held-out photos, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dune_cli.checkpoints import adapters, weight_files
from dune_cli.models.dune_mini import MiniEncoder
from dune_cli.provenance import Source
from dune_cli.training.common.dataset import centre_crop
from dune_cli.training.common.export import licences_text, write_full_and_half
from dune_cli.training.common.html import pca_grid
from dune_cli.training.common.run_folder import RunFolder
from dune_cli.training.distill import report
from dune_cli.training.distill.distiller import DistilledStudent, new_student
from dune_cli.training.distill.held_out import HeldOutScore, held_out_scores
from dune_cli.training.distill.projectors import TransformerProjector
from dune_cli.training.distill.students import Student, TimmStudent
from dune_cli.training.distill.teacher_norm import RunningTokenNorm

REPORT_PHOTOS = 4


@dataclass(frozen=True)
class DistillationFiles:
    """The files of a finished run, its scores and its report."""

    student: Path
    student_half: Path
    report_json: Path
    report_html: Path
    scores: list[HeldOutScore]
    document: dict[str, Any]


def finalize(result: DistilledStudent, output: Path) -> DistillationFiles:
    """Writes student.safetensors, student_fp16.safetensors, report.json and report.html into `output`.

    JobFailed when a weight file cannot be written.
    """
    student, norms = result.student.eval(), result.norms.eval()
    sources = {name: teacher.source for name, teacher in result.teachers.items()}
    licence = licence_text(sources, getattr(student.encoder, "open_stem", {}), result.config.init)
    weight_paths = write_full_and_half(output, "student", *student_weights(student, norms, licence))
    with torch.compiler.set_stance("force_eager"):  # avoids compiling the student again for other sizes
        return _write_report(result, weight_paths, output)


def student_weights(
    student: Student, norms: nn.ModuleDict, licence: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict, metadata) of a student's weight file.

    A timm student has timm's own state dict, which `timm.create_model(name, checkpoint_path=path)` loads. Any other is
    in our layout, whose metadata names it.
    """
    if isinstance(student.encoder, TimmStudent):
        tensors, metadata = student.encoder.model.state_dict(), {"timm": student.encoder.name}
    else:
        tensors, metadata = adapters.to_safetensors(published_checkpoint(student, norms))
    return tensors, {**metadata, "dune.licence": licence}


def published_checkpoint(student: Student, norms: nn.ModuleDict) -> dict[str, dict[str, torch.Tensor]]:
    """Encoder, projectors and teacher norms in the published names of DUNE's layout (docs/models/encoder.md).

    The layout has no place for other projectors than the paper's (`tp`), nor for PHI-S norms: those stay in the run's
    checkpoints.
    """
    chunk = "" if isinstance(student.encoder, MiniEncoder) else "0."
    state_dict = {}
    for key, value in student.encoder.state_dict().items():
        state_dict["encoder." + key.replace("blocks.", f"blocks.{chunk}", 1)] = value
    for name, projector in student.projectors.items():
        if isinstance(projector, TransformerProjector):
            for key, value in projector.projector.state_dict().items():
                state_dict[f"projectors.{name}.{key}"] = value
    for name, types in norms.items():
        for kind, norm in types.items():
            if isinstance(norm, RunningTokenNorm):
                for key, value in norm.state_dict().items():
                    state_dict[f"teacher_norms.{name}.normalizers.{kind}.{key}"] = value
    return {"model": {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}}


def licence_text(teachers: Mapping[str, Source], stem: Mapping[str, Source], init: str | None = None) -> str:
    """The licence in a weight file: of the teachers, the stem, and the weights of `--init` (a name or a file)."""
    text = "distilled by dune from " + licences_text({n: s.licence for n, s in teachers.items()})
    if stem:
        text += "; stem: " + licences_text({s.name: s.licence for s in stem.values()})
    if init is not None:
        file = weight_files.open_weights(init)
        text += f"; started from {file.entry.name if file.entry else file.path.name}: {file.licence}"
    return text


def _write_report(result: DistilledStudent, weight_paths: tuple[Path, Path], output: Path) -> DistillationFiles:
    config, teachers = result.config, result.teachers
    device = next(result.student.parameters()).device
    grid = (config.size_px // result.student.encoder.patch,) * 2
    untrained = new_student(config, {name: teacher.widths for name, teacher in teachers.items()}).to(device).eval()
    scores = held_out_scores(
        result.student, untrained, teachers, result.norms, result.dataset, config.size_px, grid, device
    )
    parameters = sum(parameter.numel() for parameter in result.student.encoder.parameters())
    content = report.document(result, scores, parameters, RunFolder(output))
    caption = (
        f"Held-out photos; first three principal components of the student's patches, then of {', '.join(teachers)}"
    )
    rows = _feature_maps(result, grid, device)
    pictures = [(caption, pca_grid(rows))] if rows else []
    return DistillationFiles(*weight_paths, *report.write(output, content, pictures), scores, content)


@torch.inference_mode()
def _feature_maps(
    result: DistilledStudent, grid: tuple[int, int], device: torch.device
) -> Sequence[tuple[np.ndarray, list[np.ndarray]]]:
    """Some held-out photos (S, S, 3) uint8, each with the patch tokens (h, w, D) of student and teachers."""
    rows = []
    for item in result.dataset.held_out[:REPORT_PHOTOS]:
        photo = result.dataset.read(item)
        if photo is None:
            continue
        crop = centre_crop(photo, result.config.size_px)
        images = crop[None].to(device)
        tokens = result.student.encoder.intermediate(images, (-1,), norm=False)[0]
        maps = [tokens.map()[0].float().cpu().numpy()]
        for teacher in result.teachers.values():
            patches = teacher(images, grid)["patch"]
            maps.append(patches[0].unflatten(0, grid).cpu().numpy())
        rows.append(((crop.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), maps))
    return rows
