from dune_cli.api import classify as classify
from dune_cli.api import depth as depth
from dune_cli.api import encode as encode
from dune_cli.api import match as match
from dune_cli.api import people as people
from dune_cli.api import reconstruct as reconstruct
from dune_cli.api import relocalize as relocalize
from dune_cli.api import segment as segment
from dune_cli.checkpoints.loader import load_classifier as load_classifier
from dune_cli.checkpoints.loader import load_depth as load_depth
from dune_cli.checkpoints.loader import load_encoder as load_encoder
from dune_cli.checkpoints.loader import load_segmenter as load_segmenter
from dune_cli.checkpoints.loader import load_two_view as load_two_view
from dune_cli.sfm.multiview import load_multiview as load_multiview
from dune_cli.tasks.human import load_human as load_human

__version__: str
