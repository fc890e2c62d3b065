"""`dune export`: networks as ONNX or torch.export files for other programs."""

from __future__ import annotations

from typing import Any

from dune_cli import console
from dune_cli.commands import checks, options, publishing
from dune_cli.commands.choices import NearChoice
from dune_cli.commands.options import option
from dune_cli.commands.publishing import PublishedOutput
from dune_cli.errors import UserError
from dune_cli.provenance import Run

KINDS = ("encoder", "depth", "segment", "two-view")
SUFFIXES = (".onnx", ".pt2")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SCHEMA = "dune.export/1"
DEFAULT_ENCODER = "dune-mini"


class ExportKind(NearChoice):
    """KIND; of a model's name the error says where that goes."""

    def hint(self, value: str) -> str:
        from dune_cli.checkpoints import registry

        if registry.find(value) is None:
            return super().hint(value)
        return f"The model {value} goes into --model: write 'dune export {'|'.join(self.choices)} --model {value}'"


@options.group("Model")
class ExportOptions:
    model: str | None = options.model_of(
        "encoders, depth models, segmentation heads or two-view models, by KIND", default_text="as of the command"
    )
    encoder: str | None = option(
        "--encoder NAME|FILE", "Encoder of a model whose weight file has none.", default_text="by the model's name"
    )
    int8: str | None = option(
        "--int8 PHOTOS",
        "Write 8-bit integers, calibrated on the photos of a folder or of a glob in quotes. Of them 24 are taken.",
    )
    size: int | None = options.size_px("Long side of the photos of --int8, and of the photo that is timed")


@options.verb()
def command(
    *,
    kind: str = options.argument("KIND", f"What to export: {', '.join(KINDS)}.", type=ExportKind(KINDS)),
    model: ExportOptions,
    output: PublishedOutput = options.adapt(
        output=options.output_to(
            "a .onnx file for ONNX Runtime and others, or a .pt2 file of torch.export.", required=True
        )
    ),
) -> None:
    """Export a network for other programs.

    The file takes images (B, 3, H, W), RGB in [0, 1], any batch, sides any multiples of the patch: the normalisation is
    in the graph. Its metadata name inputs, outputs, patch, mean, deviation, licence and hash of the weights. It is
    compared with torch at five sizes; a file that differs by more than 1e-4 is not written. A JSON file beside it has
    the differences, the times of both and, with --int8, the cosine to float32.

    'dune encode', 'depth' and 'segment' run on such a file by --runtime FILE.onnx.
    Needs the packages onnx, onnxscript and onnxruntime: pip install 'dune-cli[export]'.

    \b
    Example: dune export encoder -o dune-mini.onnx
             dune export encoder --model dinov2-vits14 --int8 photos/ -o dinov2-int8.onnx
             dune export depth --model da3-small -o depth.onnx
             dune export segment -o segment.pt2
             dune export encoder --model hf://me/my-student/student.safetensors -o student.onnx --push hf://me/my-onnx
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import check_output, sibling

    target = output.file(*SUFFIXES)
    assert target is not None
    check_output(sibling(target, ".json"), (".json",), output.overwrite)
    if model.int8 is not None and target.suffix.lower() != ".onnx":
        raise UserError(f"--int8 is written as .onnx, and the output is {target}; name a .onnx file, or leave it out")
    if output.push is not None and target.suffix.lower() != ".onnx":
        raise UserError(
            f"--push takes .onnx files, as {target.suffix} can hold pickles; name a .onnx file, or leave it out"
        )
    publishing.check(output.push)
    paths = [] if model.int8 is None else expand((model.int8,))
    chosen = _chosen(kind, model)
    if target.suffix.lower() == ".onnx":
        from dune_cli import optional

        for package in PACKAGES:
            optional.require(package, "an export to ONNX", extra="export")

    from dune_cli.export.files import export_file
    from dune_cli.export.networks import load_network
    from dune_cli.io.json_files import write_json

    run = Run()
    with run.stage("load"):
        network = load_network(kind, chosen, model.encoder)
    for source in network.sources:
        console.note(f"{source.name}, licence of the weights: {source.licence}")
    facts, inputs = export_file(network, target, paths, model.size, run)
    document = {"schema": SCHEMA, "file": target.name, **facts, "provenance": run.provenance(network.sources, inputs)}
    write_json(sibling(target, ".json"), document)
    publishing.push(output.push, (target,), document)
    for line in _lines(document):
        console.note(line)
    output.print_lines(target)
    output.print_json([document])


def _chosen(kind: str, given: ExportOptions) -> str:
    """The model, by default that of the command of the same kind. WeightsMissing or UserError for one that is not
    here."""
    if kind in ("depth", "segment"):
        return options.ModelOptions(model=given.model, encoder=given.encoder).choose(kind)
    if given.model is None and kind == "two-view":
        raise UserError("no two-view model comes with dune; name one with --model (see 'dune weights list --all')")
    checks.weights(given.model, given.encoder)
    return given.model or DEFAULT_ENCODER


def _lines(document: dict[str, Any]) -> list[str]:
    """What was measured, for people."""
    lines = []
    if "compared" in document:
        worst = max(one["relative_error"] for one in document["compared"])
        lines.append(f"float32 equals torch within {worst:.1e} at {len(document['compared'])} sizes")
    if "int8" in document:
        facts = document["int8"]
        of = "other photos" if facts["held_out"] else "the photos of the calibration"
        parts = [f"{name} {value['mean']:.4f} (1 %: {value['p1']:.4f})" for name, value in facts["cosine"].items()]
        lines.append(f"cosine of int8 to float32 on {facts['measured_photos']} {of}: {', '.join(parts)}")
    if "speed" in document:
        spent = document["speed"]["seconds"]
        base = spent["torch float32"]
        parts = [f"{name} {value:.3f} s ({base / value:.1f} x)" for name, value in spent.items()]
        lines.append(f"one photo, {document['speed']['threads']} threads: {', '.join(parts)}")
    return lines
