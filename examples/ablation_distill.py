"""Compare sharing strategies and projectors: distils a small student for each pair of them, with several seeds.

    python examples/ablation_distill.py --teachers xfeat,efficientnet-lite2 \\
        --data xfeat=sequences/ --data efficientnet-lite2=photos/ -o ablation/

The score is the mean cosine to a teacher's tokens after its mean is subtracted, for which a constant prediction scores
0, on photos held out from training, averaged over token types. The table shows the mean and the sample standard
deviation over seeds; differences of that size are not significant. Finished runs are reused, an interrupted one is
resumed. Teacher outputs are cached for each seed (`-o`/cache). Sharing strategies "own…" need tagged data, as above.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from dune_cli.training.distill.config import PROJECTORS, STRATEGIES, DistillConfig
from dune_cli.training.distill.distiller import distill
from dune_cli.training.distill.finalize import finalize


def scores(config: DistillConfig, folder: Path) -> dict[str, float]:
    """Teacher -> score of a run, which is trained if it has no report."""
    report = folder / "report.json"
    content = json.loads(report.read_text()) if report.exists() else finalize(distill(config, folder), folder).document
    by_teacher: dict[str, list[float]] = {}
    for row in content["held_out"]:
        by_teacher.setdefault(row["teacher"], []).append(row["standardised"])
    return {name: statistics.mean(values) for name, values in by_teacher.items()}


def mean_and_std(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def table(rows: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Markdown: a line for each strategy and projector, a column for each teacher and their mean."""
    teachers = list(next(iter(rows.values()))[0])
    lines = [f"| sharing | projector | {' | '.join(teachers)} | mean |", "|---" * (len(teachers) + 3) + "|"]
    for (sharing, projector), runs in rows.items():
        cells = [mean_and_std([run[name] for run in runs]) for name in teachers]
        cells.append(mean_and_std([statistics.mean(run.values()) for run in runs]))
        lines.append(f"| {sharing} | {projector} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", required=True, help="as for dune distill")
    parser.add_argument("--data", required=True, action="append", help="TEACHER=FOLDER, several times")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder of all runs and of table.md")
    parser.add_argument("--student", default="vit:128x4", help="as for dune distill (%(default)s)")
    parser.add_argument("--size", default=112, type=int, help="side of the crops, pixels (%(default)s)")
    parser.add_argument("--steps", default=300, type=int, help="steps of a run (%(default)s)")
    parser.add_argument("--batch-size", default=16, type=int, help="images a step (%(default)s)")
    parser.add_argument(
        "--lr", default=8e-3, type=float, help="learning rate at batch size 256, scaled linearly (%(default)s)"
    )
    parser.add_argument("--seeds", default=3, type=int, help="runs of each pair (%(default)s)")
    parser.add_argument("--sharing", default=",".join(STRATEGIES), help="strategies (%(default)s)")
    parser.add_argument("--projectors", default=",".join(PROJECTORS), help="projectors (%(default)s)")
    options = parser.parse_args()

    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for sharing in options.sharing.split(","):
        for projector in options.projectors.split(","):
            for seed in range(options.seeds):
                config = DistillConfig(
                    teachers=tuple(options.teachers.split(",")),
                    data=tuple(options.data),
                    student=options.student,
                    size_px=options.size,
                    steps=options.steps,
                    batch_size=options.batch_size,
                    learning_rate=options.lr,
                    sharing=sharing,
                    projector=projector,
                    seed=seed,
                    held_out_fraction=0.1,
                    cache=str(options.output / "cache"),
                )
                run = scores(config, options.output / f"{sharing}-{projector}-{seed}")
                rows.setdefault((sharing, projector), []).append(run)
    text = table(rows)
    (options.output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
