"""Shards one by one: what is done is skipped, what is damaged is done again, and a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dune_cli import __version__, console
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.json_files import dumps
from dune_cli.io.shards.files import KINDS
from dune_cli.io.shards.folder import ShardFolder
from dune_cli.io.shards.manifest import Manifest
from dune_cli.provenance import sha256_of
from dune_cli.runtime import return_freed_memory
from dune_cli.tasks.large_folders.pipeline import PhotoNetwork, ShardPipeline, ShardVerb
from dune_cli.tasks.large_folders.record import (
    SHARD_SCHEMA,
    SUMMARY,
    SUMMARY_SCHEMA,
    ShardFacts,
    ShardRun,
    models_of,
)

LOAD = "load"
READERS = 16  # of small files of an object store


@dataclass(frozen=True)
class ShardProgress:
    """`photos` that are done since the last one, `computed` by this run or before. At the end of a shard its
    `seconds`."""

    photos: int
    computed: bool
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardTask:
    """A shard to do. `own`: False where it is another process's, which may be at it."""

    number: int
    own: bool = True


@dataclass(frozen=True)
class ShardJobs:
    """The work on a run, sent to other processes: called there once, it gives the function of a ShardTask.

    device: where the networks run. threads: that decode photos and finish results. verify: whether shards that are done
    are read and compared with their checksums; else their sizes are. redo_errors: whether shards with errors are done
    again. models: those of a shard that is done, if there is one.
    """

    folder: ShardFolder
    run: ShardRun
    verb: ShardVerb
    device: str
    threads: int = 1
    verify: bool = True
    redo_errors: bool = False
    models: tuple[dict[str, Any], ...] | None = None

    def __call__(self) -> _Worker:
        return _Worker(self)

    def names(self, number: int) -> tuple[str, str]:
        """The file of a shard and the JSON beside it."""
        stem = f"shards/{self.verb.name}-{number:08d}"
        return f"{stem}.{self.verb.kind}", f"{stem}.json"

    def facts_if_done(self, manifest: Manifest, number: int, verify: bool) -> ShardFacts | None:
        """Those of a shard that is whole; None, with a note where it is damaged, for another."""
        name, beside = self.names(number)
        if self.folder.size_bytes(beside) is None:
            return None
        try:
            facts = ShardFacts.read(self.folder, beside)
            size = self.folder.size_bytes(name)
            if size != facts.bytes:
                raise UserError(f"it has {size or 0} bytes instead of {facts.bytes}")
            if (facts.number, facts.photos) != (number, manifest.photos_in(number)):
                raise UserError("it is of another manifest")
            if verify and self.folder.sha256(name) != facts.sha256:
                raise UserError("its checksum does not fit")
        except (UserError, OSError) as error:
            console.note_once(f"{self.folder.shown(name)} is damaged ({error}); it is computed again", "damaged shards")
            return None
        return facts

    def there(self) -> set[int]:
        """The numbers of the shards that seem to be done."""
        name = f"{self.verb.name}-"
        stems = (Path(file).stem for file in self.folder.names("shards") if file.endswith(".json"))
        return {int(stem.removeprefix(name)) for stem in stems if stem.startswith(name)}

    def first_models(self) -> tuple[dict[str, Any], ...] | None:
        """The models of the first shard that is done."""
        number = min(self.there(), default=None)
        if number is None:
            return None
        facts = self.facts_if_done(self.run.manifest(self.folder), number, False)
        return None if facts is None else facts.models


class _Worker:
    """The function of a ShardTask. The models are loaded when the first shard needs them."""

    def __init__(self, jobs: ShardJobs) -> None:
        return_freed_memory()  # of the process that works, which may be one of many
        self.jobs, self.manifest = jobs, jobs.run.manifest(jobs.folder)
        self.network: PhotoNetwork | None = None
        self.load_seconds = 0.0

    def __call__(self, task: ShardTask) -> Iterator[ShardProgress]:
        number = task.number
        if self._is_done(task):
            yield ShardProgress(self.manifest.photos_in(number) if task.own else 0, False)
            return
        name, _ = self.jobs.names(number)
        with self.jobs.folder.claimed(name) as free:
            if free and not self._is_done(task):  # by another process, meanwhile
                yield from self._compute(number)

    def _is_done(self, task: ShardTask) -> bool:
        facts = self.jobs.facts_if_done(self.manifest, task.number, self.jobs.verify and task.own)
        return facts is not None and not (self.jobs.redo_errors and task.own and facts.errors)

    def _compute(self, number: int) -> Iterator[ShardProgress]:
        jobs = self.jobs
        if self.network is None:
            start = time.perf_counter()
            self.network = self._load()
            self.load_seconds = time.perf_counter() - start
        network, verb = self.network, jobs.verb
        shard = self.manifest.shard(number)
        name, beside = jobs.names(number)
        models = models_of(network.sources)
        metadata = {
            "schema": SHARD_SCHEMA,
            "verb": verb.name,
            "settings": verb.settings(),
            "models": list(models),
            "dune": __version__,
        }
        pipeline = ShardPipeline(network, verb.batch_size, jobs.threads)
        errors: list[str] = []
        with console.collected() as notes, jobs.folder.writing(name) as temporary:
            file = KINDS[verb.kind](temporary, network.columns, metadata)
            try:
                for error in pipeline.run(shard, file.add):
                    errors += [] if error is None else [error]
                    yield ShardProgress(1, True)
            except BaseException:
                file.abandon()
                raise
            file.close()
            size, sha256 = temporary.stat().st_size, sha256_of(temporary)
        first_error = errors[0] if errors else None
        facts = ShardFacts(
            number, name, shard.first_row, len(shard.files), len(errors), first_error, size, sha256, models
        )
        jobs.folder.write_text(beside, dumps(facts.as_json()) + "\n")
        for text in [*(text for text, _ in notes), *(f"no result: {error}" for error in errors)]:
            console.note_once(text, "notes on photos")
        yield ShardProgress(0, True, {LOAD: self.load_seconds, **pipeline.seconds})
        self.load_seconds = 0.0

    def _load(self) -> PhotoNetwork:
        import torch

        torch.set_num_threads(1)  # networks round by the number of threads
        network = self.jobs.verb.load(self.jobs.device)
        models = models_of(network.sources)
        if self.jobs.models is not None and models != self.jobs.models:
            place = self.jobs.folder.place
            before, now = (", ".join(f"{m['name']} {m['sha256']}" for m in one) for one in (self.jobs.models, models))
            raise UserError(f"{place} was begun with the weights {before}, and these are {now}; name another output")
        return network


def summarise(jobs: ShardJobs) -> dict[str, Any]:
    """Writes shards.json, the list of all shards, and returns it. JobFailed where some are missing (another process is
    still at them, or was stopped), or where no photo has a result."""
    manifest = jobs.run.manifest(jobs.folder)
    numbers = range(manifest.shards)
    look = partial(jobs.facts_if_done, manifest, verify=False)
    if jobs.folder.is_local:
        found = [look(number) for number in numbers]
    else:
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(look, numbers))
    facts = [one for one in found if one is not None]
    if len(facts) < len(numbers):
        raise JobFailed(
            f"{len(numbers) - len(facts)} of {len(numbers)} shards of {jobs.folder.place} are not done; run the same "
            "command again"
        )
    _check_models(facts, jobs.folder)
    errors = sum(one.errors for one in facts)
    tree = {
        "schema": SUMMARY_SCHEMA,
        "verb": jobs.verb.name,
        "settings": jobs.run.settings,
        "photos": manifest.photos,
        "errors": errors,
        "models": list(facts[0].models),
        "dune": sorted({one.dune for one in facts}),
        "shards": [
            {name: getattr(one, name) for name in ("file", "first_row", "photos", "errors", "bytes", "sha256")}
            for one in facts
        ],
    }
    jobs.folder.write_text(SUMMARY, dumps(tree) + "\n")
    jobs.folder.sweep()
    if errors == manifest.photos:
        raise JobFailed(f"none of the {errors} photos has a result; the first: {facts[0].first_error}")
    return tree


def _check_models(facts: Sequence[ShardFacts], folder: ShardFolder) -> None:
    other = next((one for one in facts if one.models != facts[0].models), None)
    if other is not None:
        raise JobFailed(
            f"{folder.shown(other.file)} was computed with other weights than {facts[0].file}; remove one of them and "
            "run the same command again"
        )
