"""`dune search`: the photos of an index that are most similar to a photo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import ComputeOptions, OutputOptions, option
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo

NEEDS = ("numpy", "torch", "PIL")
ENGINES = ("numpy", "faiss")
SUFFIXES = (".jpg", ".jpeg", ".png")


@options.group("Input")
class SearchOptions:
    index: str = option("--index DIR", "Index folder that dune index wrote.", required=True)
    model: str | None = options.model_of(
        "the encoder of the index", default_text="as the index names it", heading="Model"
    )
    top: int = option("--top N", "Number of hits per photo.", options.COUNT, 10, heading="Output")
    exclude_self: bool = option(
        "--exclude-self", "Leave out the query's own file and exact copies of it.", heading="Output"
    )
    engine: str = option(
        f"--engine [{'|'.join(ENGINES)}]",
        "Engine of the search. Both compare every vector. faiss: pip install 'dune-cli[search]'.",
        default="numpy",
        heading="Advanced",
    )


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS,
    given: SearchOptions,
    compute: ComputeOptions,
    output: OutputOptions = options.adapt(
        output=options.output_to("a .jpg or .png contact sheet, each query on the left of its hits.")
    ),
) -> None:
    """Search an index for the photos most similar to a photo.

    Prints cosine similarity and path, the most similar photo or video frame first. Every vector of the index is
    compared. A query that is in the index is its own first hit, with similarity 1, unless --exclude-self is given.

    \b
    Example: dune index photos/ -o index/
             dune search query.jpg --index index/ --top 10
             dune search query.jpg --index index/ --exclude-self -o contact.jpg
             dune search queries/ --index index/ --json
    """
    from dune_cli.io.contact_sheet import sheet_size_px
    from dune_cli.io.inputs import expand
    from dune_cli.io.photo_index import open_index

    paths = expand(photos)
    checks.first_photo(paths)
    target = output.file(*SUFFIXES)
    index = open_index(given.index)
    if target is not None:
        sheet_size_px([min(given.top, len(index.rows))] * len(paths))
    chosen = given.model or index.encoder.model
    checks.weights(chosen)
    if given.engine == "faiss":
        from dune_cli import optional

        optional.import_faiss("--engine faiss")

    from dune_cli.checkpoints.loader import load_encoder
    from dune_cli.io.contact_sheet import save_contact_sheet
    from dune_cli.io.photos import read_photo
    from dune_cli.sfm.global_descriptors import DescriptorSettings, GlobalDescriptor
    from dune_cli.tasks import search as task

    run = Run()
    with run.stage("load"):
        encoder = load_encoder(chosen, compute.device, compute.dtype)
    console.note(f"{encoder.source.name}, licence of the weights: {encoder.source.licence}")
    descriptor = GlobalDescriptor(encoder, chosen, DescriptorSettings(index.encoder.pooling, index.encoder.size_px))
    task.check_encoder(index, descriptor)

    def read() -> Iterator[Photo]:
        for path in console.progress(paths, "search", len(paths), "photo"):
            with run.stage("read"):
                photo = read_photo(path)
            yield photo

    settings = task.SearchSettings(given.top, given.exclude_self, given.engine)
    results = task.search(index, read(), descriptor, settings, run)
    if target is not None:
        with run.stage("write"):
            save_contact_sheet(target, task.sheet_rows(results))
    documents = []
    for result in results:
        query = (result.query.path, result.query.sha256)
        provenance = run.provenance([encoder.source], [query], dtype=compute.dtype)
        documents.append(task.document(index, result, settings, provenance))
        head = [f"{result.query.path}:"] if len(results) > 1 else []
        output.print_lines(*head, *(f"{hit.similarity:.4f}  {hit.shown}" for hit in result.hits))
    if target is not None:
        console.note(f"contact sheet: {target}")
    output.print_json(documents)
