"""The task of `dune human`: people in photos, as bodies in metres."""

from dune_cli.tasks.human.files import document, meshes, write_meshes, write_overlay, write_top_view
from dune_cli.tasks.human.model import HumanModel, Person, load_human
from dune_cli.tasks.human.photo import PhotoPeople, cameras, parse_selection, predict, select

__all__ = [
    "HumanModel",
    "Person",
    "PhotoPeople",
    "cameras",
    "document",
    "load_human",
    "meshes",
    "parse_selection",
    "predict",
    "select",
    "write_meshes",
    "write_overlay",
    "write_top_view",
]
