"""`--shards` of the verbs that write a file a photo: large folders into few files, by any number of processes."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dune_cli import console, runtime
from dune_cli.commands import checks, options
from dune_cli.commands.choices import WholeNumber
from dune_cli.commands.matching import EngineOptions, workers_option
from dune_cli.commands.options import ComputeOptions, OutputOptions, option
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dune_cli.io.shards.folder import ShardFolder
    from dune_cli.sfm.engine import Engine
    from dune_cli.tasks.large_folders.pipeline import ShardVerb
    from dune_cli.tasks.large_folders.ranks import Ranks
    from dune_cli.tasks.large_folders.shards import ShardJobs

T = TypeVar("T")
PHOTOS_PER_SHARD = 1000
MOST_PHOTOS_PER_SHARD = 1_000_000
DROPPED = ("file", "overlay", "image", "provenance")  # of a document, in a row
MOST_THREADS = 16  # that decode photos for one GPU


@options.group("Shards")
class ShardOptions:
    """Without `photos_per_shard` none of the others may be given."""

    photos_per_shard: int | None = option(
        "--shards N",
        f"Write shards of N photos each into the folder -o, for large folders and URLs (s3://bucket/prefix). Without a "
        f"number: {PHOTOS_PER_SHARD}. Subfolders are included.",
        WholeNumber(1, MOST_PHOTOS_PER_SHARD),
        is_flag=False,
        flag_value=str(PHOTOS_PER_SHARD),
    )
    manifest: str | None = option(
        "--manifest [check|extend|keep]",
        "What happens where the photos are not those that the run began with. check: it is refused. extend: new ones "
        "become further shards. keep: it goes on without looking.",
        default_text="check",
    )
    verify: bool = option(
        "--verify/--no-verify",
        "Compare shards that are done with their checksums, or only with their sizes.",
        default=True,
    )
    redo_errors: bool = option("--redo-errors", "Compute shards again in which photos have no result.")
    workers: int | None = workers_option("compute shards", "all processors; one process for a GPU")
    engine: str = option(
        "--engine [processes|ray]",
        "Engine that runs the workers. processes: this machine. ray: Ray on this machine or a cluster, whose machines "
        "share the photos, the weights and the output.",
        default="processes",
    )
    ray_address: str | None = options.changed(EngineOptions, "ray_address")

    @property
    def wanted(self) -> bool:
        """Whether shards are to be written. UserError for the other options without --shards."""
        given = {
            "--manifest": self.manifest is not None,
            "--no-verify": not self.verify,
            "--redo-errors": self.redo_errors,
            "--workers": self.workers is not None,
            "--engine": self.engine != "processes",
            "--ray-address": self.ray_address is not None,
        }
        for name, there in given.items():
            if there and self.photos_per_shard is None:
                raise UserError(f"{name} is for large folders; add --shards, or leave {name} out")
        if self.ray_address is not None and self.engine != "ray":
            raise UserError("--ray-address belongs to --engine ray; add that, or leave --ray-address out")
        return self.photos_per_shard is not None

    def refuse_with(self, **given: object) -> None:
        """UserError for options of single files, by their names with _ for -, that shards have no use for."""
        for name, value in given.items():
            if value not in (None, False, ()):
                raise UserError(f"--{name.replace('_', '-')} is for single files; leave it or --shards out")


def compute_shards(
    verb: ShardVerb, photos: Sequence[str], shards: ShardOptions, compute: ComputeOptions, output: OutputOptions
) -> None:
    """Runs `verb` over all photos and writes shards, what is already there excepted."""
    from dune_cli.io.object_stores import is_url
    from dune_cli.io.shards.folder import ShardFolder
    from dune_cli.io.shards.manifest import parquet_module
    from dune_cli.sfm.engine import LOCAL, check_answers
    from dune_cli.tasks.large_folders.ranks import ranks_from_environment
    from dune_cli.tasks.large_folders.record import CHECK, ShardRun, open_run
    from dune_cli.tasks.large_folders.shards import ShardJobs

    if output.output is None:
        raise UserError("shards go into a folder; name it with -o")
    parquet_module()
    folder = ShardFolder(output.output)
    folder.check()
    if shards.ray_address not in (None, LOCAL):  # before anything is written
        check_answers(shards.ray_address)
    inputs = tuple(text if is_url(text) else os.path.abspath(Path(text).expanduser()) for text in photos)  # noqa: PTH100
    asked = ShardRun(verb.name, verb.settings(), inputs, shards.photos_per_shard or PHOTOS_PER_SHARD)
    with ranks_from_environment() as ranks:
        if ranks.size > 1 and (shards.workers or shards.engine != "processes"):
            raise UserError("torchrun starts the processes; leave --workers and --engine out")
        if ranks.is_first:
            if output.overwrite:
                _remove(folder)
            run = open_run(folder, asked, shards.manifest or CHECK)
            ranks.wait()
        else:
            ranks.wait()
            run = ShardRun.read(folder)
        jobs = ShardJobs(folder, run, verb, compute.device, verify=shards.verify, redo_errors=shards.redo_errors)
        _compute(jobs, ranks, shards, output)


def _compute(jobs: ShardJobs, ranks: Ranks, shards: ShardOptions, output: OutputOptions) -> None:
    from dataclasses import replace

    from dune_cli.runtime import pick_device
    from dune_cli.sfm.engine import open_engine
    from dune_cli.tasks.large_folders.shards import summarise

    manifest = jobs.run.manifest(jobs.folder)
    device = pick_device(jobs.device)
    on_gpu, threads = device.type != "cpu", 1
    workers = shards.workers
    if on_gpu:
        threads = max(1, min(MOST_THREADS, runtime.available_threads() // ranks.local_size))
        if device.type == "cuda" and ranks.size > 1 and device.index is None:
            jobs = replace(jobs, device=f"cuda:{ranks.local}")
    elif workers is None and ranks.size == 1 and shards.engine == "processes":
        workers = min(runtime.available_threads(), manifest.shards)
    jobs = replace(jobs, threads=threads, models=jobs.first_models())
    with ExitStack() as stack:
        alone = workers == 1 and shards.engine == "processes"
        name, count = shards.engine, None if alone else workers
        engine = stack.enter_context(open_engine(name, count, shards.ray_address, on_gpus=jobs.device != "cpu"))
        _follow(engine, jobs, ranks)
    ranks.wait()
    if ranks.is_first:
        summary = summarise(jobs)
        if summary["errors"]:
            console.note(f"{summary['errors']} of {summary['photos']} photos have no result; their rows say why")
        output.print_lines(jobs.folder.place)
        output.print_json([summary])


def _follow(engine: Engine, jobs: ShardJobs, ranks: Ranks) -> None:
    """Does the shards and shows the progress. The speed is that without loading the models."""
    from dune_cli.tasks.large_folders.shards import LOAD

    start = time.perf_counter()
    seconds: dict[str, float] = {}
    computed = 0
    manifest = jobs.run.manifest(jobs.folder)
    there = jobs.there()
    if there and ranks.is_first:
        how = "checksums" if jobs.verify else "sizes"
        console.note(f"{len(there)} of {manifest.shards} shards are there; those whose {how} fit are kept")
    left = manifest.photos - sum(manifest.photos_in(number) for number in there if number < manifest.shards)
    bar = console.bar(-(-left // ranks.size), jobs.verb.name, "photo")
    # in an object store nobody sees what another process is at
    tasks = ranks.tasks(manifest.shards, helps=jobs.folder.is_local)
    try:
        with closing(engine.map(jobs, tasks)) as results:
            for step in results:
                if step.computed:
                    bar.update(step.photos)
                    computed += step.photos
                for name, value in step.seconds.items():
                    seconds[name] = seconds.get(name, 0.0) + value
    finally:
        bar.close()
    if computed:
        passed = time.perf_counter() - start - seconds.pop(LOAD, 0.0) / engine.workers
        shares = ", ".join(f"{name} {value / engine.workers / passed:.0%}" for name, value in seconds.items())
        console.note(f"{computed} photos in {passed:.1f} s, {computed / passed:.2f} a second; {shares}")


def _remove(folder: ShardFolder) -> None:
    """Removes a run. UserError in an object store."""
    import shutil

    from dune_cli.tasks.large_folders.record import RUN, SUMMARY

    if folder.size_bytes(RUN) is None:
        return
    if not folder.is_local:
        raise UserError(f"--overwrite removes nothing from object stores; remove {folder.place} first, or name another")
    for name in (RUN, SUMMARY):
        folder.path(name).unlink(missing_ok=True)
    for name in ("manifest", "shards"):
        shutil.rmtree(folder.path(name), ignore_errors=True)


@options.group("Shards")
class BatchShardOptions(ShardOptions):
    batch_size: int = option(
        "--batch-size N",
        "Number of photos per forward pass of shards; heads of dune train take several.",
        options.COUNT,
        1,
    )

    @property
    def wanted(self) -> bool:
        if self.batch_size > 1 and self.photos_per_shard is None:
            raise UserError("--batch-size is for large folders; add --shards, or leave it out")
        return super().wanted


def written(name: str, write: Callable[[Path], T]) -> tuple[bytes, T]:
    """The content of the file `name` that `write` writes, and what it returns."""
    from dune_cli.io.outputs import scratch_folder

    with scratch_folder() as scratch:
        returned = write(scratch / name)
        return (scratch / name).read_bytes(), returned


def each_once(predict: Callable[[Any], T], inputs: Sequence[Any]) -> list[T]:
    """The results of a network that takes one photo at a time, for a pass that may hold a photo several times."""
    results = {id(one): predict(one) for one in {id(one): one for one in inputs}.values()}
    return [results[id(one)] for one in inputs]


def row_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of a single file for a row, which has the photo's facts, in a file with its own provenance."""
    return {name: value for name, value in document.items() if name not in DROPPED}


def stored_weights(*names: str | None) -> list[str | None]:
    """Models as other processes find them. WeightsMissing or UserError for those that are not here."""
    checks.weights(*names)
    return [None if name is None else checks.stored_name(name) for name in names]


def one_camera(cameras: Any) -> None:
    """UserError for --intrinsics with a camera for each photo in the order of the command line, or without any."""
    from dune_cli.io.intrinsics import check_intrinsics
    from dune_cli.io.safe_read import is_file

    text = cameras.intrinsics
    if text is not None and ";" in text and not is_file(Path(text).expanduser()):
        raise UserError("--intrinsics with several cameras is for few photos; give one for all, or a file of cameras")
    check_intrinsics(text)
