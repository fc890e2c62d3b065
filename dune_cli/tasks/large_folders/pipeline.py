"""The photos of one shard through a network: decoding, the network and writing at the same time, in bounded memory.

Threads decode photos ahead of the network and finish its results behind it (resampling, compression). Rows are written
in the order of the photos.

Photos whose network inputs are alike share a pass. Which ones depends on the photos of the shard alone, and a pass that
is not full is filled up with its last photo: a result is the same for any number of processes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from dune_cli.errors import DuneError, UserError
from dune_cli.io.image_file import FILE_LIMIT_BYTES
from dune_cli.io.object_stores import is_url, read_place
from dune_cli.io.photos import Photo, PhotoInfo, photo_from_bytes
from dune_cli.io.shards.files import Column, ShardRow, Value
from dune_cli.io.shards.listing import ListedFile
from dune_cli.io.shards.manifest import ManifestShard
from dune_cli.provenance import Source

WAIT_BATCHES = 4  # a photo waits for its pass while so many times the batch size follow it
AHEAD = 2  # photos a thread that are decoded before the network needs them, or finished before they are written


@dataclass(frozen=True)
class PhotoResult:
    """What a verb keeps of a photo; the fields of a `ShardRow`."""

    columns: Mapping[str, Value] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    document: Mapping[str, Any] | None = None


class PhotoNetwork(Protocol):
    """A verb with its models loaded. `prepare` and `finish` run in several threads, `predict` in one.

    A DuneError of any of them is the error of the photo's row. keeps_pixels: whether `finish` gets the photo itself, or
    its `PhotoInfo`, so that photos that wait for their pass take less memory.
    """

    sources: Sequence[Source]
    columns: Sequence[Column]
    keeps_pixels: bool

    def prepare(self, photo: Photo) -> tuple[Hashable, Any]:
        """The input of the network, and a key: inputs of one key fit into one pass."""
        ...

    def predict(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The result of each input, of one pass. The inputs may hold one several times."""
        ...

    def finish(self, photo: Any, result: Any) -> PhotoResult:
        """What is kept of a result."""
        ...


class ShardVerb(Protocol):
    """What a verb writes in shards; sent to other processes. `kind`: of the shards' files (io/shards/files.py)."""

    name: str
    kind: str
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """All options on which the results depend, as JSON."""
        ...

    def load(self, device: str) -> PhotoNetwork:
        """Loads the models."""
        ...


@dataclass
class _Item:
    index: int
    file: ListedFile
    photo: Photo | PhotoInfo | None = None
    input: Any = None
    key: Hashable = None
    error: str | None = None


class ShardPipeline:
    """`seconds`: how long the network worked, and waited for photos and for writing."""

    def __init__(self, network: PhotoNetwork, batch_size: int, threads: int) -> None:
        self.network, self.batch_size, self.threads = network, batch_size, threads
        self.seconds = dict.fromkeys(("network", "wait for photos", "wait for writing"), 0.0)

    def run(self, shard: ManifestShard, write: Callable[[ShardRow], None]) -> Iterator[str | None]:
        """Hands the row of each photo to `write`, in order and from one thread; yields the error of each row that is
        written. What `write` or a network raises that is no DuneError of a photo is raised here."""
        names = ("decode", "finish", "write")
        pools = [ThreadPoolExecutor(1 if name == "write" else self.threads, name) for name in names]
        try:
            yield from _Passage(self, shard, write, pools).rows()
        finally:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)

    def timed(self, what: str, call: Callable[[], Any]) -> Any:
        """The result of a call, whose time counts as `what`."""
        start = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds[what] += time.perf_counter() - start


class _Passage:
    def __init__(
        self,
        pipeline: ShardPipeline,
        shard: ManifestShard,
        write: Callable[[ShardRow], None],
        pools: Sequence[Executor],
    ) -> None:
        self.pipeline, self.shard, self.write = pipeline, shard, write
        self.network, self.batch_size = pipeline.network, pipeline.batch_size
        self.decoders, self.finishers, self.writer = pools
        self.most = AHEAD * pipeline.threads + pipeline.batch_size
        self.finished: dict[int, Future[ShardRow]] = {}
        self.written: deque[Future[str | None]] = deque()
        self.next = 0  # index of the first row that is not handed to the writer

    def rows(self) -> Iterator[str | None]:
        waiting: dict[Hashable, list[_Item]] = {}
        for item in self._items():
            if item.error is None:
                waiting.setdefault(item.key, []).append(item)
            else:
                self._finish(item, None)
            oldest = item.index - WAIT_BATCHES * self.batch_size
            ready = [k for k, group in waiting.items() if len(group) == self.batch_size or group[0].index <= oldest]
            for key in ready:
                self._predict(waiting.pop(key))
            yield from self._written(self.most)
        for group in waiting.values():
            self._predict(group)
        yield from self._written(0)

    def _items(self) -> Iterator[_Item]:
        """The photos in order, decoded ahead."""
        decoding: deque[Future[_Item]] = deque()
        for index, file in enumerate(self.shard.files):
            decoding.append(self.decoders.submit(self._decode, index, file))
            if len(decoding) > self.most:
                yield self.pipeline.timed("wait for photos", decoding.popleft().result)
        while decoding:
            yield self.pipeline.timed("wait for photos", decoding.popleft().result)

    def _decode(self, index: int, file: ListedFile) -> _Item:
        item = _Item(index, file)
        try:
            photo = read_listed(file)
            item.photo = photo if self.network.keeps_pixels else photo.info
            item.key, item.input = self.network.prepare(photo)
        except DuneError as error:
            item.error = str(error)
        return item

    def _predict(self, group: list[_Item]) -> None:
        filled = [item.input for item in group] + [group[-1].input] * (self.batch_size - len(group))
        try:
            results = self.pipeline.timed("network", lambda: self.network.predict(filled))
        except DuneError as error:
            if len(group) > 1:  # whose it is shows alone
                for item in group:
                    self._predict([item])
                return
            group[0].error = str(error)
            results = [None]
        for item, result in zip(group, results):
            self._finish(item, result)

    def _finish(self, item: _Item, result: Any) -> None:
        item.input = None
        self.finished[item.index] = self.finishers.submit(self._row, item, result)
        while self.next in self.finished:
            self.written.append(self.writer.submit(self._write, self.finished.pop(self.next)))
            self.next += 1

    def _row(self, item: _Item, result: Any) -> ShardRow:
        number = self.shard.first_row + item.index
        facts: dict[str, Value] = {"path": item.file.place, "bytes": item.file.size_bytes}
        if item.photo is not None:
            facts |= {"sha256": item.photo.sha256, "width": item.photo.width, "height": item.photo.height}
            if item.error is None:
                try:
                    kept = self.network.finish(item.photo, result)
                    return ShardRow(number, facts, kept.columns, kept.files, kept.document)
                except DuneError as error:
                    item.error = str(error)
        return ShardRow(number, facts, {}, {}, None, _with_place(item.error or "", item.file.place))

    def _write(self, row: Future[ShardRow]) -> str | None:
        whole = row.result()
        self.write(whole)
        return whole.error

    def _written(self, most: int) -> Iterator[str | None]:
        """Waits until at most `most` rows are on their way to the file."""
        while self.written and (len(self.written) > most or self.written[0].done()):
            yield self.pipeline.timed("wait for writing", self.written.popleft().result)


def read_listed(file: ListedFile) -> Photo:
    """A photo of a manifest. UserError where it cannot be read, or is not the file that was listed."""
    data = read_place(file.place, "a photo", FILE_LIMIT_BYTES)
    if file.size_bytes and len(data) != file.size_bytes:
        raise UserError(
            f"{file.place} has {len(data)} bytes, and had {file.size_bytes} when the manifest was made; put the "
            "listed file back, or name another output"
        )
    return photo_from_bytes(data, _named(file.place))


def _named(place: str) -> Path | PurePosixPath:
    return PurePosixPath(place) if is_url(place) else Path(place)


def _with_place(text: str, place: str) -> str:
    """A message with the URL as it is; a path has made one slash of two."""
    return text.replace(str(_named(place)), place)
