"""XFeat keypoints (Potje et al. 2024) matched by LighterGlue: small networks, fast on CPUs; their weights come with
dune."""

from __future__ import annotations

from dune_cli.errors import CheckpointError
from dune_cli.matchers._match_head import HeadMatcher, XFeatExtractor
from dune_cli.matchers._weights import availability_by_weights
from dune_cli.matchers.matcher import Availability, Matcher

NAME = "xfeat-lighterglue"
WEIGHTS = "xfeat-lighterglue-bundled"
MEASURED_AUC10 = 0.46
MEASURED_SECONDS = 0.41
TAKES_MODEL = False


class XFeatLighterGlue(HeadMatcher):
    """Both networks with the published weights in float16. Keypoints are refined to the heatmap's centre of mass."""

    name = NAME

    def __init__(self, device: str = "auto") -> None:
        """WeightsMissing or CheckpointError where the file that comes with dune is lost or damaged."""
        from dune_cli.checkpoints.loader import load_match_head

        head = load_match_head(WEIGHTS, device)
        if head.xfeat is None:
            raise CheckpointError(f"{WEIGHTS} holds no backbone; install dune-cli again")
        super().__init__(XFeatExtractor(head.xfeat), head)


def availability() -> Availability:
    """Always ready: the weights come with dune."""
    return availability_by_weights(WEIGHTS, cure="pip install --force-reinstall dune-cli")


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return XFeatLighterGlue(device)
