"""`dune reloc`: where a photo was taken, relative to another one or in a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.grouped import GroupedCommand
from dune_cli.commands.reloc_map import MapWords, map_options
from dune_cli.commands.reloc_pair import PairWords
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.tasks.reloc.sight import Sight


@click.command(cls=GroupedCommand, short_help="Where a photo was taken, relative to a reference photo or in a map.")
@click.argument("query")
@click.argument("references", nargs=-1, metavar="REFERENCE...")
@map_options
@click.option("--model", metavar="NAME|FILE", help="Two-view model (MASt3R, DUNE + MASt3R): poses in metres.")
@click.option("--encoder", metavar="NAME|FILE", help="The DUNE encoder of a DUNE + MASt3R model.")
@click.option(
    "--matcher",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Without --model: auto (the best one present), sift, xfeat-lighterglue, aliked-lightglue.",
)
@click.option(
    "--solver",
    type=click.Choice(["pnp", "essential"]),
    help="pnp: the query's pixels on the reference's points in metres; essential: the epipolar geometry, its length "
    "from these points or --baseline.  [default: pnp where there are such points]",
)
@click.option(
    "--ref-depth",
    "ref_depths",
    multiple=True,
    metavar="FILE",
    help="Depth of the reference, pixel by pixel: 16-bit PNG, or NPZ as dune depth writes it. Once a reference, in "
    "their order.",
)
@click.option(
    "--depth-scale",
    type=options.FiniteRange(0, min_open=True),
    metavar="N",
    help="Metres = PNG value / N.  [default: what the depth's own JSON says, else 1000]",
)
@click.option(
    "--baseline",
    type=options.FiniteRange(0, min_open=True),
    metavar="METRES",
    help="True distance between the two cameras.",
)
@click.option(
    "--min-confidence",
    type=options.FiniteRange(0, 1),
    metavar="C",
    help="Give out no pose below it.  [default: 0.15]",
)
@options.cameras
@options.size
@options.seed
@options.compute
@options.output(False, "Also write the JSON to this .json file; with --map also .jsonl, a line a query.")
@options.as_json
@options.common
def command(
    query: str,
    references: tuple[str, ...],
    map_folder: str | None,
    images: str | None,
    scale: str | None,
    top_k: int | None,
    retrieval: str | None,
    work: str | None,
    model: str | None,
    encoder: str | None,
    matcher: str,
    solver: str | None,
    ref_depths: tuple[str, ...],
    depth_scale: float | None,
    baseline: float | None,
    min_confidence: float | None,
    intrinsics: str | None,
    fov_deg: float | None,
    size: int | None,
    seed: int,
    device: str,
    dtype: str,
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Rotation and translation of the QUERY photo's camera relative to that of each REFERENCE photo, or in a map.

    The translation is the query camera's centre in the reference camera's frame (x right, y down, z forward): in metres
    with a two-view --model, --ref-depth or --baseline, else a direction of length 1. Several references give one pose
    together, in the frame of the best one, and each its own as a candidate in the JSON. Photos of different places, one
    photo twice, and a camera that only turned (unless lengths are known: then the distance is about 0) give no pose:
    exit code 1 and the reason.

    With --map every photo that is named is a query, and its pose is in the world of that map, with its covariance;
    exit code 1 where none of them was found. The covariance contains the uncertainty of the map's own cameras where the
    map is a scene.json of dune reconstruct, and of a COLMAP model only with that file in its folder; the JSON says
    whether it does. What is computed for the map is kept in its folder dune-work.

    \b
    Example: dune reloc query.jpg reference.jpg --fov-deg 65
             dune reloc query.jpg reference.jpg --ref-depth reference_depth.png -o pose.json
             dune reloc query.jpg one.jpg two.jpg --model dunemast3r-vitb --json
             dune reloc --map colmap/ --images photos/ queries/ -o poses.jsonl
    """
    if map_folder is not None:
        from dune_cli.commands import reloc_map

        given = {
            "--solver": solver,
            "--ref-depth": ref_depths or None,
            "--depth-scale": depth_scale,
            "--baseline": baseline,
            "--size": size,
        }
        reloc_map.refuse(given)
        words = MapWords(
            *((query, *references), map_folder, images, scale, top_k, retrieval, work, model, encoder, matcher),
            *(min_confidence, intrinsics, fov_deg, seed, device, dtype, output, overwrite, as_json),
        )
        reloc_map.locate_in_map(words)
        return
    from dune_cli.commands import reloc_pair

    own = {"--images": images, "--scale": scale, "--top-k": top_k, "--retrieval": retrieval, "--work": work}
    for name, value in own.items():
        if value is not None:
            raise UserError(f"{name} belongs to --map; name the map, or leave {name} out")
    if not references:
        raise click.UsageError("Missing argument 'REFERENCE...' (or --map DIR)")
    reloc_pair.locate_by_references(
        PairWords(
            *(query, references, model, encoder, matcher, solver, ref_depths, depth_scale, baseline, min_confidence),
            *(intrinsics, fov_deg, size, seed, device, dtype, output, overwrite, as_json),
        )
    )


def load_sight(
    model: str | None, encoder: str | None, matcher: str, size: int | None, device: str, dtype: str
) -> Sight:
    """The two-view model, or the matcher, that sees what photos have in common."""
    from dune_cli.tasks.reloc.sight import MatcherSight, TwoViewSight

    if model is not None:
        from dune_cli.checkpoints.load import load_two_view

        network = load_two_view(model, encoder, device, dtype)
        console.note(f"model {network.source.name}, licence {network.source.licence}")
        return TwoViewSight(network, size)
    from dune_cli.matchers import load

    if matcher == "auto":
        matcher, text = load.choose_auto()
        console.note(text)
    return MatcherSight(load.load_matcher(matcher, device, dtype))
