"""Writes, checks and measures the file of an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dune_cli.errors import JobFailed
from dune_cli.export import int8, measured, onnx_file
from dune_cli.export.networks import ExportNetwork
from dune_cli.export.session import OnnxSession
from dune_cli.io.outputs import atomic_path, scratch_folder
from dune_cli.provenance import Run, sha256_of

LEAST_COSINE = 0.9  # of an int8 file, mean over an output; below it the file is of no use


def export_file(
    network: ExportNetwork, target: Path, photos: Sequence[Path], size_px: int | None, run: Run
) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
    """Writes `target` (.onnx or .pt2) and returns what was measured of it, and the photos that it took, with hashes.

    photos: makes the file int8, calibrated on some of them. size_px: their long side, and that of the timed
    image (None: the model's own).
    JobFailed where the file differs from torch; PackageMissing without the extra `export`.
    """
    is_onnx = target.suffix.lower() == ".onnx"
    if is_onnx:
        onnx_file.require_onnx()
    long_px = measured.checked_size(network, size_px)
    split = measured.split(photos)
    with run.stage("prepare"):
        calibration = measured.photo_inputs(network, split.calibration, long_px)
        others = measured.photo_inputs(network, split.measured, long_px)
    with run.stage("trace"):
        program = onnx_file.export_program(network)
    if not is_onnx:
        with run.stage("write"), atomic_path(target) as path:
            onnx_file.save_program(program, network, path)
        return _facts(network, target, "float32"), []
    with scratch_folder() as folder:
        plain = folder / "float32.onnx"
        with run.stage("translate"):
            onnx_file.save_onnx(program, network, plain)
        session = OnnxSession(plain)
        with run.stage("compare"):
            facts: dict[str, Any] = {"compared": onnx_file.compare(network, session)}
        sessions, written = {"onnx float32": session}, plain
        if photos:
            written = folder / "int8.onnx"
            with run.stage("quantise"):
                facts["int8"] = _quantise(network, plain, written, split, calibration)
            sessions["onnx int8"] = OnnxSession(written)
            with run.stage("compare"):
                facts["int8"]["cosine"] = measured.cosines(network, sessions["onnx int8"], others)
            _refuse_useless(network, facts["int8"]["cosine"])
        with run.stage("time"):
            images = others[0] if others else onnx_file.noise(network, long_px)
            facts["speed"] = measured.timings(network, sessions, images)
        with run.stage("write"), atomic_path(target) as path:
            path.write_bytes(written.read_bytes())
    used = [(path, sha256_of(path)) for path in dict.fromkeys((*split.calibration, *split.measured))] if photos else []
    return {**_facts(network, target, "int8" if photos else "float32"), **facts}, used


def _facts(network: ExportNetwork, target: Path, precision: str) -> dict[str, Any]:
    about = onnx_file.metadata(network, precision)
    for name in ("version", "sha256", "licence", "sources"):  # in the provenance
        about.pop(name)
    if target.suffix.lower() != ".onnx":
        about.pop("opset")
    return {**about, "bytes": target.stat().st_size, "file_sha256": sha256_of(target)}


def _quantise(
    network: ExportNetwork, plain: Path, written: Path, split: measured.PhotoSplit, calibration: list[measured.Images]
) -> dict[str, Any]:
    arrays = [dict(zip(network.inputs, (image.numpy() for image in images))) for images in calibration]
    layers = int8.quantise(plain, written, arrays, onnx_file.metadata(network, "int8"))
    return {
        "layers": layers,
        "weight_bits": 7 if int8.seven_bits() else 8,
        "calibration_photos": len(split.calibration),
        "measured_photos": len(split.measured),
        "held_out": split.held_out,
    }


def _refuse_useless(network: ExportNetwork, cosine: dict[str, dict[str, float]]) -> None:
    """JobFailed for an int8 file whose outputs are others than those of float32."""
    name, worst = min(cosine.items(), key=lambda item: item[1]["mean"])
    if not worst["mean"] >= LEAST_COSINE:
        raise JobFailed(
            f"int8 does not suit {network.sources[0].name}: the cosine of {name} to float32 is {worst['mean']:.3f} on "
            f"average, less than {LEAST_COSINE:g}; export it without --int8"
        )
