"""The model card (README.md of a repository of the Hugging Face hub) of weights, made of the report of their making."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dune_cli.checkpoints import weight_files
from dune_cli.checkpoints.hub import SUFFIX
from dune_cli.checkpoints.registry import format_bytes
from dune_cli.provenance import sha256_of

SCORES = ("held_out", "validation", "compared")  # of a report
PLACES = ("data", "photos", "scenes", "labels", "cache")  # settings that name folders here
FACTS = ("steps", "images", "hours", "seconds", "best_step", "validation_loss")
TAGS = {
    "dune.distill/1": ("image-feature-extraction", "An image encoder, distilled"),
    "dune.head-report/1": (None, "A head on the features of an image encoder, trained"),
    "dune.people-head-report/1": (None, "A head for people on the features of an image encoder, trained"),
    "dune.export/1": (None, "A network as a file for other programs, exported"),
}
USE = {
    "dune.distill/1": "dune encode photo.jpg -o features.npz --model",
    "dune.people-head-report/1": "dune human photo.jpg -o people.obj --model",
}
TASKS = {
    "depth": "dune depth photo.jpg -o depth.npz --model",
    "segmentation": "dune segment photo.jpg -o classes.png --model",
    "classification": "dune classify photo.jpg --model",
}
MATCHER_USE = "dune reloc query.jpg reference.jpg --matcher dune --model"


def model_card(repository: str, files: Sequence[Path], report: Mapping[str, Any]) -> str:
    """The card's Markdown. `files`: the published ones, the main one first; `report`: report.json of a training, or the
    JSON of an export.

    Paths of this machine are left out: only settings that are no path are told.
    """
    schema = report.get("schema", "")
    tag, what = TAGS.get(schema, (None, "A matching head on the features of an image encoder, trained"))
    version = report.get("provenance", {}).get("dune")
    head = ["---", "library_name: dune", "license: other", "license_name: see-the-section-licence"]
    head += [f"pipeline_tag: {tag}"] if tag else []
    return "\n".join(
        [
            *[*head, "tags: [dune, computer-vision]", "---", "", f"# {repository.partition('/')[2]}", ""],
            f"{what} by dune{f' {version}' if version else ''}.",
            *_use(repository, files[0], report),
            *_scores(report),
            *_training(report),
            *_licence(files[0], report),
            *_files(files),
            "",
        ]
    )


def _use(repository: str, file: Path, report: Mapping[str, Any]) -> list[str]:
    schema = report.get("schema", "")
    if file.suffix != SUFFIX:
        return ["", "## Use", "", f"    hf download {repository} {file.name}"]
    task = report.get("config", {}).get("task")
    command = USE.get(schema) or TASKS.get(task) or MATCHER_USE
    return ["", "## Use", "", "    pip install 'dune-cli[hub]'", f"    {command} hf://{repository}/{file.name}"]


def _scores(report: Mapping[str, Any]) -> Iterator[str]:
    for name in SCORES:
        found = report.get(name)
        if isinstance(found, Mapping) and isinstance(found.get("scores"), Mapping):
            found = found["scores"]
        if not found:
            continue
        yield from ("", "## Differences from torch" if name == "compared" else "## Scores on held-out data", "")
        if isinstance(found, Mapping) and not all(isinstance(value, Mapping) for value in found.values()):
            yield from _table(("score", "value"), [(key, value) for key, value in found.items() if _plain(value)])
            continue
        rows = [{"": key, **value} for key, value in found.items()] if isinstance(found, Mapping) else list(found)
        names = [name for name in dict.fromkeys(key for row in rows for key in row) if _plain(rows[0].get(name))]
        yield from _table(names, [[row.get(name) for name in names] for row in rows])


def _training(report: Mapping[str, Any]) -> Iterator[str]:
    rows = [(key, report[key]) for key in FACTS if _plain(report.get(key))]
    rows += [(f"photos, {key}", value) for key, value in _mapping(report, "photos").items() if isinstance(value, int)]
    rows += [
        (f"{part}: {key}", value)
        for part in ("student", "encoder", "head")
        for key, value in _mapping(report, part).items()
        if _plain(value)
    ]
    rows += [("learned from", text) for text in report.get("data", ()) if isinstance(text, str)]
    rows += [
        (f"setting {key}", value)
        for key, value in _mapping(report, "config").items()
        if _plain(value) and key not in PLACES
    ]
    rows = [(key, value) for key, value in rows if not _is_path(value)]
    if rows:
        yield from ("", "## Training" if "config" in report else "## Facts", "")
        yield from _table(("what", "value"), rows)


def _licence(file: Path, report: Mapping[str, Any]) -> Iterator[str]:
    sources = _mapping(report, "provenance").get("models", ())
    yield from ("", "## Licence", "")
    if file.suffix == SUFFIX:
        yield f"The file says: {_cell(weight_files.read_weights(file).licence)}."
    if not sources:
        return
    yield from ("", "These weights depend on others, whose licences bind whoever uses them.", "")
    rows = [(Path(one["name"]).name if _is_path(one["name"]) else one["name"], one["licence"]) for one in sources]
    hashes = [one["sha256"] for one in sources]
    yield from _table(("weights", "licence", "sha256"), [(*row, sha256) for row, sha256 in zip(rows, hashes)])


def _files(files: Sequence[Path]) -> Iterator[str]:
    yield from ("", "## Files", "")
    yield from _table(
        ("file", "size", "sha256"), [(path.name, format_bytes(path.stat().st_size), sha256_of(path)) for path in files]
    )


def _mapping(report: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = report.get(key)
    return found if isinstance(found, Mapping) else {}


def _plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool)) or (
        isinstance(value, (list, tuple)) and 0 < len(value) <= 8 and all(isinstance(one, (str, int)) for one in value)
    )


def _is_path(value: object) -> bool:
    """Whether a setting may tell of this machine's folders; places on the hub do not."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    return any(
        isinstance(text, str) and not text.startswith("hf://") and ("/" in text or "\\" in text) for text in texts
    )


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
