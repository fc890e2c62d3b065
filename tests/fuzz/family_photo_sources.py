"""Where training photos come from: text lists and tar shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from dune_cli.errors import DuneError
from dune_cli.training.common.dataset import open_source
from fuzz.harness import Sample

PHOTOS = {f"photo-{number}.jpg": bytes([number]) * (300 + number) for number in range(5)}


def samples(folder: Path) -> Sequence[Sample]:
    listed = "# photos\n" + "\n".join(PHOTOS) + "\n"
    texts = {**PHOTOS, "list.txt": listed.encode()}
    shards = {f"{kind}.tar": _shard(form) for kind, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT))}
    return [
        Sample(texts, lambda case: _read(str(case / "list.txt")), _accept, ["list.txt"]),
        Sample(shards, lambda case: _read(str(case / "*.tar")), _accept, kinds=dict.fromkeys(shards, "tar")),
    ]


def _shard(form: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for name, data in (*PHOTOS.items(), ("x" * 120 + ".jpg", b"long"), ("ä.jpg", b"other"), ("a.txt", b"label")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _read(text: str) -> list[tuple[str, str, bytes | None]]:
    source = open_source(text)
    found = []
    for index in range(len(source)):
        try:
            content = source.read(index)
        except (OSError, DuneError) as error:
            assert 0 < len(str(error)) < 200_000
            content = None
        found.append((source.name(index), source.label(index), content))
    return found


def _accept(found: list[tuple[str, str, bytes | None]]) -> None:
    assert found
    assert all(name and label for name, label, _ in found)
