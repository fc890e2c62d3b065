"""`dune distill`: co-distil one encoder from heterogeneous teachers."""

from __future__ import annotations

from dune_cli import console
from dune_cli.commands import checks, options, publishing
from dune_cli.commands.options import SeededOptions, TrainingOptions, option
from dune_cli.commands.publishing import RunOutput
from dune_cli.errors import UserError

WEIGHTS = (
    (
        "teachers",
        "dune distill --data photos/ -o run/ --teachers NAME",
        ("xfeat", "efficientnet-lite2", ("people", "people-teacher")),
    ),
)


@options.group("Input")
class SourceOptions:
    teachers: tuple[str, ...] = option(
        "--teachers NAME,...",
        "Teachers, each NAME, NAME=FILE or timm:MODEL, such as dinov2,mast3r,multihmr or xfeat,efficientnet-lite2.",
        options.NameList(distinct=False),
        required=True,
    )
    data: tuple[str, ...] = option(
        "--data [TEACHER=]SOURCE",
        "Source of photos: a folder, a .txt list of paths, or .tar shards (also s3://, https://). Repeatable.",
        required=True,
        multiple=True,
    )
    student: str = option(
        "--student NAME",
        "Student: dune-vits14, dune-vitb14, dune-mini, vit:WIDTHxDEPTH, or timm:MODEL.",
        default="dune-vits14",
        heading="Model",
    )
    init: str | None = options.init_from("random weights")


@options.group("Training")
class DistillOptions(TrainingOptions):
    """The settings of the training. Their names are those of `DistillConfig`."""

    size_px: int = option("--size PX", "Side of the square crops, in pixels.", int, 336)
    batch_size: int = option("--batch-size N", "Number of images per step, over all processes.", options.COUNT, 128)
    accumulate: int = option("--accumulate N", "Number of gradient-accumulation steps per batch.", options.COUNT, 1)
    learning_rate: float = options.changed(
        TrainingOptions,
        "learning_rate",
        default=3e-4,
        help="Peak learning rate at batch size 256, scaled linearly with the batch size.",
    )
    sharing: str = option(
        "--sharing [none|lowest_loss|own_data|own+generic_data]",
        "Strategy that assigns images to teachers.",
        default="lowest_loss",
    )
    drop_probability: float = option(
        "--drop-probability X",
        "Probability that lowest_loss drops a teacher for an image. That of the highest loss stays.",
        options.FRACTION,
        0.5,
    )
    projector: str = option(
        "--projector [tp|sp|lp]",
        "Projectors of the teachers. tp: transformer block, as in the paper. sp: MLP. lp: ladder of MLPs.",
        default="tp",
    )
    norm: str = option("--norm [mean-std|phi-s]", "Normalisation of the teacher outputs.", default="mean-std")
    held_out_fraction: float = options.changed(TrainingOptions, "held_out_fraction", default=0.03)
    photometric: bool = option(
        "--photometric/--no-photometric", "Augment with colour jitter, blur and solarization.", default=True
    )
    cache: str | None = option(
        "--cache DIR", "Cache folder of teacher outputs, computed once for --crops fixed crops per photo."
    )
    crops: int = option("--crops N", "Number of fixed crops per photo with --cache.", options.COUNT, 4)
    compile: bool = option("--compile", "Compile the student with torch.compile.", heading="Advanced")
    fsdp: bool = option(
        "--fsdp",
        "Shard the student over the processes of torchrun (FSDP2), instead of copying it (DDP).",
        heading="Advanced",
    )
    logger: str | None = option("--logger [tensorboard]", "Additional logger. Needs its package.", heading="Advanced")
    workers: int = option("--workers N", "Number of threads that load photos.", options.COUNT, 2, heading="Advanced")


@options.verb()
def command(
    *,
    sources: SourceOptions,
    training: DistillOptions,
    compute: SeededOptions,
    output: RunOutput,
    resume: bool = option("--resume", "Fail unless the run folder holds a run to resume."),
    preflight: bool = option(
        "--preflight", "Time four steps, print the estimated hours, memory and disk space, and stop."
    ),
) -> None:
    """Distil one student encoder from several teachers on unlabelled photos.

    Follows DUNE's recipe, with frozen teachers. The run folder holds checkpoints and log.jsonl. At the end it also
    holds student.safetensors, student_fp16.safetensors, report.json and report.html. The same command resumes an
    interrupted run, bit for bit. torchrun starts it on several GPUs or processes.

    \b
    Example: dune distill --teachers dinov2,mast3r,multihmr --data photos/ -o student/
             dune distill --teachers xfeat,efficientnet-lite2 --data photos/ --student dune-mini:xfeat+lite \\
                          --size 224 --batch-size 32 --cache cache/ -o mini/
             dune distill --teachers dinov2 --data photos/ -o student/ --push hf://me/my-student
             torchrun --nproc-per-node 8 -m dune_cli.cli distill --teachers … --data … -o student/
    """
    from dataclasses import asdict

    from dune_cli.io.json_files import dumps
    from dune_cli.training.distill.config import DistillConfig

    config = DistillConfig(**options.values(sources, training, compute))
    folder = output.folder
    if resume and not (folder / "config.json").exists():
        raise UserError(f"--resume: {folder} holds no run; leave --resume out to begin one")
    checks.teachers(sources.teachers)
    checks.data(sources.data, sources.teachers)
    checks.weights(sources.init)
    publishing.check(output.push)

    from dune_cli.training.distill.distiller import distill
    from dune_cli.training.distill.finalize import finalize
    from dune_cli.training.distill.preflight import preflight as estimate

    if preflight:
        console.document(dumps(asdict(estimate(config, folder))))
        return
    result = distill(config, folder)
    if not result.is_main:
        return
    if result.cache_bytes is not None:
        console.note(
            f"teacher cache: {result.cache_bytes / 1e6:.1f} MB, ready after {result.cache_seconds:.1f} s; "
            f"the steps then took {result.seconds:.1f} s without any teacher"
        )
    done = finalize(result, folder)
    if done.document["photos"]["broken_count"]:
        console.note(f"{done.document['photos']['broken_count']} photos could not be read; the report lists them")
    publishing.push(output.push, (done.student, done.student_half), done.document)
    output.print_json([done.document])
    if output.as_json:
        return
    for score in done.scores:
        console.note(
            f"held out, {score.teacher} {score.kind}: cosine {score.student:.3f} "
            f"(untrained {score.untrained:.3f}, mean feature {score.mean_feature:.3f})"
        )
    output.print_lines(done.student, done.student_half, done.report_json, done.report_html)
