"""The task of `dune human`: people in photos and videos, as bodies in metres."""

from dune_cli.tasks.human.animation import AnimationOptions, MotionRecorder, MotionSmoothing
from dune_cli.tasks.human.files import (
    describe_body,
    describe_photo,
    document,
    meshes,
    write_meshes,
    write_overlay,
    write_top_view,
)
from dune_cli.tasks.human.fitted import BodyFitter, FittedHumanModel, FittedPerson
from dune_cli.tasks.human.joints import predict_from_joints
from dune_cli.tasks.human.load import load_fitter, load_human
from dune_cli.tasks.human.model import HumanModel, Person
from dune_cli.tasks.human.photo import (
    PhotoPeople,
    TrackSummary,
    cameras,
    parse_selection,
    predict,
    predict_frames,
    select,
)

__all__ = [
    "AnimationOptions",
    "BodyFitter",
    "FittedHumanModel",
    "FittedPerson",
    "HumanModel",
    "MotionRecorder",
    "MotionSmoothing",
    "Person",
    "PhotoPeople",
    "TrackSummary",
    "cameras",
    "describe_body",
    "describe_photo",
    "document",
    "load_fitter",
    "load_human",
    "meshes",
    "parse_selection",
    "predict",
    "predict_frames",
    "predict_from_joints",
    "select",
    "write_meshes",
    "write_overlay",
    "write_top_view",
]
