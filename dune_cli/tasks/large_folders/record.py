"""What a run in shards is made of: run.json, the manifest, and the facts beside each shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dune_cli import __version__, console
from dune_cli.errors import UserError
from dune_cli.io.json_files import Fields, dumps, json_line
from dune_cli.io.safe_read import parse_json
from dune_cli.io.shards.folder import ShardFolder
from dune_cli.io.shards.listing import list_photos
from dune_cli.io.shards.manifest import Manifest, ManifestPart, changes_of, compare, write_part
from dune_cli.provenance import Source

RUN, SUMMARY = "run.json", "shards.json"
RUN_SCHEMA, SHARD_SCHEMA, SUMMARY_SCHEMA = "dune.shard-run/1", "dune.shard/1", "dune.shards/1"
CHECK, EXTEND, KEEP = "check", "extend", "keep"


@dataclass(frozen=True)
class ShardRun:
    """A run in shards: `verb` with its `settings` on `inputs`. `left_out`: counts of files that are no photos."""

    verb: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    photos_per_shard: int
    parts: tuple[ManifestPart, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()

    def manifest(self, folder: ShardFolder) -> Manifest:
        """The photos."""
        return Manifest(folder, self.parts, self.photos_per_shard)

    def write(self, folder: ShardFolder) -> None:
        """Writes run.json."""
        tree = {
            "schema": RUN_SCHEMA,
            "verb": self.verb,
            "settings": self.settings,
            "inputs": list(self.inputs),
            "photos_per_shard": self.photos_per_shard,
            "photos": sum(part.photos for part in self.parts),
            "shards": sum(part.shards for part in self.parts),
            "left_out": dict(self.left_out),
            "manifest": [part.as_json() for part in self.parts],
        }
        folder.write_text(RUN, dumps(tree) + "\n")

    @classmethod
    def read(cls, folder: ShardFolder) -> ShardRun:
        """From run.json. UserError for what is none."""
        where = folder.shown(RUN)
        fields = Fields(parse_json(folder.read(RUN, "a run in shards"), where), where)
        if fields.text("schema") != RUN_SCHEMA:
            raise UserError(f"{where} has the schema {fields.text('schema')!r}; {RUN_SCHEMA} is needed")
        return cls(
            fields.text("verb"),
            dict(fields.object("settings")),
            tuple(str(text) for text in fields.items_of("inputs")),
            fields.integer("photos_per_shard", low=1),
            tuple(ManifestPart.read(part) for part in fields.objects("manifest")),
            tuple(dict(fields.object("left_out")).items()),
        )


def open_run(folder: ShardFolder, asked: ShardRun, manifest: str) -> ShardRun:
    """The run that `asked` begins in the folder, or goes on with. Lists the photos.

    manifest: what happens where they are not those of the manifest: CHECK refuses, EXTEND adds new ones as further
    shards, KEEP does not look. UserError for a folder that holds something else, a run with other settings, and where
    there are no photos.
    """
    if folder.size_bytes(RUN) is None:
        if folder.names() - {"manifest"}:  # which a stop may have left
            raise UserError(f"{folder.place} holds files of something else; name another output")
        return _begin(folder, asked)
    run = ShardRun.read(folder)
    _check_same(folder, run, asked)
    run.manifest(folder).check()
    if manifest == KEEP:
        if run.inputs != asked.inputs:
            raise UserError(
                f"the manifest of {folder.place} was made of {', '.join(run.inputs)[:200]}; name the same, or give "
                "--manifest check or extend"
            )
        return run
    left_out: Counter[str] = Counter()
    changes = changes_of(compare(run.manifest(folder), list_photos(asked.inputs, left_out)))
    if not changes:
        return run
    told = ", ".join(
        f"{count} {words}"
        for count, words in ((changes.added, "new"), (changes.removed, "gone"), (changes.resized, "of another size"))
        if count
    )
    told = f"of the photos, {told} since the manifest of {folder.place} was made (first: {changes.first})"
    if manifest == CHECK or changes.resized:
        extend = (
            "" if changes.resized or not changes.added else "give --manifest extend to add the new ones as shards, "
        )
        raise UserError(f"{told}; {extend}give --manifest keep to go on with those listed, or name another output")
    if changes.removed:
        console.note(f"{told}; the rows of those that are gone stay, or say so")
    return _extended(folder, run, asked)


def _begin(folder: ShardFolder, asked: ShardRun) -> ShardRun:
    left_out: Counter[str] = Counter()
    with console.working("list photos"):
        part = write_part(folder, list_photos(asked.inputs, left_out), (), asked.photos_per_shard)
    if part is None:
        others = ", ".join(f"{count} {kind}" for kind, count in left_out.items() if count)
        raise UserError(
            f"{', '.join(asked.inputs)[:200]} holds no photos{f' ({others})' if others else ''}; check the folder or "
            "the URL"
        )
    run = replace(asked, parts=(part,), left_out=_counted(left_out))
    run.write(folder)
    for kind, count in run.left_out:
        console.note(f"left out: {count} {kind}")
    return run


def _extended(folder: ShardFolder, run: ShardRun, asked: ShardRun) -> ShardRun:
    left_out: Counter[str] = Counter()
    differences = compare(run.manifest(folder), list_photos(asked.inputs, left_out))
    new = (file for kind, file in differences if kind == "added")
    part = write_part(folder, new, run.parts, run.photos_per_shard)
    if part is None:
        return run
    console.note(f"{part.photos} new photos are added as {part.shards} shards")
    extended = replace(run, parts=(*run.parts, part), inputs=asked.inputs, left_out=_counted(left_out))
    extended.write(folder)
    return extended


def _counted(left_out: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple((kind, count) for kind, count in sorted(left_out.items()) if count)


def _check_same(folder: ShardFolder, run: ShardRun, asked: ShardRun) -> None:
    before = {"verb": run.verb, "--shards": run.photos_per_shard, **run.settings}
    now = {"verb": asked.verb, "--shards": asked.photos_per_shard, **json.loads(json_line(asked.settings))}
    changed = sorted(key for key in before | now if before.get(key) != now.get(key))
    if changed:
        told = ", ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in changed)
        raise UserError(
            f"{folder.place} holds a run with other settings ({told[:200]}); repeat those, add --overwrite to start "
            "anew, or name another output"
        )


@dataclass(frozen=True)
class ShardFacts:
    """The JSON beside a shard, by which it counts as done. `errors`: rows without a result; `first_error`: of them."""

    number: int
    file: str
    first_row: int
    photos: int
    errors: int
    first_error: str | None
    bytes: int
    sha256: str
    models: tuple[dict[str, Any], ...]
    dune: str = __version__

    def as_json(self) -> dict[str, Any]:
        """The document `dune.shard/1`."""
        return {"schema": SHARD_SCHEMA, **vars(self), "models": list(self.models)}

    @classmethod
    def read(cls, folder: ShardFolder, name: str) -> ShardFacts:
        """UserError where there is none, or it is damaged."""
        where = folder.shown(name)
        fields = Fields(parse_json(folder.read(name, "the facts of a shard"), where), where)
        numbers = {key: fields.integer(key, low=0) for key in ("number", "first_row", "photos", "errors", "bytes")}
        texts = {key: fields.text(key) for key in ("file", "sha256", "dune")}
        models = tuple(dict(model) for model in fields.objects("models"))
        return cls(**numbers, **texts, models=models, first_error=fields.text("first_error", None))


def models_of(sources: Sequence[Source]) -> tuple[dict[str, Any], ...]:
    """Sources as the facts of a shard have them."""
    return tuple({"name": one.name, "sha256": one.sha256, "licence": one.licence} for one in sources)
