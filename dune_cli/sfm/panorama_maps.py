"""Maps with panoramas as maps of photos: each panorama is there as its perspective views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import from_rotation_translation, vector_angle
from dune_cli.io.cache import WorkFolder
from dune_cli.sfm.panoramas import cut
from dune_cli.sfm.photo_map import MapImage, PhotoMap

NEIGHBOURS = 32  # of an image, from which those that it is matched with are chosen
FACING = np.radians(60)  # between viewing directions, up to which views are neighbours
SAME_PLACE = 1e-3  # of the extent of the map: from there nothing can be triangulated


def in_perspective(photo_map: PhotoMap, cache: WorkFolder) -> PhotoMap:
    """The map with the views of its panoramas, which the cache keeps, in place of these. Neighbours are then images
    from other places that look the same way, the nearest first. UserError as `cut`."""
    spheres = {index: image.camera for index, image in enumerate(photo_map.images) if image.camera.is_panorama}
    if not spheres:
        return photo_map
    photos = cut([image.file for image in photo_map.images], spheres, cache)
    images = []
    for part in photos.parts:
        image = photo_map.images[part.source]
        if part.view is None:
            images.append(image)
            continue
        assert part.view.rotation is not None
        images.append(
            replace(
                image,
                name=f"{part.direction}/{image.name}",
                file=part.path,
                camera=Camera.pinhole(part.view.K, part.view.width, part.view.height),
                world_from_cam=image.world_from_cam @ from_rotation_translation(part.view.rotation.T, np.zeros(3)),
            )
        )
    return replace(photo_map, images=tuple(_with_neighbours(images, photo_map.extent)))


def _with_neighbours(images: list[MapImage], extent: float) -> list[MapImage]:
    centres = np.stack([image.world_from_cam[:3, 3] for image in images])
    axes = np.stack([image.world_from_cam[:3, 2] for image in images])
    found = []
    for image, centre, axis in zip(images, centres, axes):
        distance = np.linalg.norm(centres - centre, axis=1)
        angle = vector_angle(axes, axis[None])
        usable = (distance > SAME_PLACE * extent) & (angle < FACING)
        cost = np.where(usable, distance / max(extent, 1e-12) + angle / FACING, np.inf)
        order = np.argsort(cost, kind="stable")[: min(NEIGHBOURS, int(np.count_nonzero(usable)))]
        found.append(replace(image, neighbours=tuple(map(int, order))))
    return found
