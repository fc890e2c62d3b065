"""Deviation of an encoder's tokens in bfloat16 from float32; meaningful for trained weights.

    python examples/dtype_deviation.py dinov2_vits14_pretrain.pth examples/photos/*.png --size 518

Prints, for each photo, the relative change of the patch tokens |a - b| / |b| against float32 (median, 95th percentile,
largest), the share of tokens that change by more than 1 %, and the share whose nearest token in the previous photo
changes.
"""

from __future__ import annotations

import argparse

import torch

from dune_cli import load_encoder
from dune_cli.io.photos import read_photo
from dune_cli.io.preprocess import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="encoder: a registry name or a weight file")
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--size", type=int, default=518, help="long side in pixels (default 518)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    options = parser.parse_args()

    exact = load_encoder(options.model, device="cpu")
    rough = load_encoder(options.model, device="cpu", dtype=options.dtype)
    print(f"{'photo':28}{'norm':>6}{'median':>9}{'95 %':>8}{'largest':>9}{'> 1 %':>8}{'other neighbour':>17}")
    database = None
    for path in options.photos:
        image = torch.from_numpy(prepare(read_photo(path).rgb, options.size, exact.patch).image)[None]
        for norm in (True, False):
            with torch.inference_mode():
                a, b = exact(image, norm).patches[0], rough(image, norm).patches[0]
            change = (b - a).norm(dim=-1) / a.norm(dim=-1)
            median, p95 = change.quantile(torch.tensor([0.5, 0.95])).tolist()
            neighbour = "" if database is None or not norm else f"{share_with_other_neighbour(a, b, database):17.2%}"
            print(
                f"{path[-27:]:28}{'yes' if norm else 'no':>6}{median:9.2%}{p95:8.2%}{change.max():9.2%}"
                f"{(change > 0.01).float().mean():8.1%}{neighbour}"
            )
            if norm:
                current = a
        database = current


def share_with_other_neighbour(a: torch.Tensor, b: torch.Tensor, database: torch.Tensor) -> float:
    """Share of tokens whose most similar token (cosine) in the previous photo differs."""
    unit = torch.nn.functional.normalize(database, dim=-1)
    return ((a @ unit.T).argmax(1) != (b @ unit.T).argmax(1)).float().mean().item()


if __name__ == "__main__":
    main()
