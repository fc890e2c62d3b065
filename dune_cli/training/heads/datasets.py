"""Labelled photos for heads, in the layouts that people have.

Depth: `index.jsonl`, `depth.json`, TUM RGB-D, KITTI, pairs of folders such as `rgb/` and `depth/`, or `NAME.jpg`
beside `NAME.png`. Segmentation: folders `images/` and `masks/`, or `images/` and a COCO JSON. Classification: a folder
for each class.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.camera_checks import pinhole_matrix
from dune_cli.io.depth_files import MILLIMETRES
from dune_cli.io.inputs import IMAGE_SUFFIXES, natural_key
from dune_cli.io.json_files import Fields
from dune_cli.io.safe_read import file_in, is_file, parse_json, read_json, read_text, shown
from dune_cli.models.mosaic import CLASSES
from dune_cli.training.common.dataset import open_source

IGNORED = 255  # class number of pixels that have none
MOST_CLASSES = 255
SETTINGS = ("indoor", "outdoor")
LEAST_OF_A_CLASS = 2  # one to train on and one to hold out

DepthKind = Literal["metric", "disparity"]


@dataclass(frozen=True)
class DepthFile:
    """A depth map of a photo.

    kind: "metric" (z in metres) or "disparity" (inverse depth, its scale and shift unknown). units: of the file's
    numbers per metre, or per unit of disparity. focal_px: geometric mean of fx and fy in the photo's pixels; None: not
    known.
    """

    path: Path
    kind: DepthKind
    units: float
    focal_px: float | None = None


@dataclass(frozen=True)
class MaskFile:
    """A PNG with a class number a pixel; `classes` is the number of classes.

    ids: the file's number of each class, any other being none. Without them the numbers are the classes, 255 is none,
    and others are mistakes.
    """

    path: Path
    classes: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Polygons:
    """COCO's regions of a photo of `size` (width, height): (class number, polygons or RLE) in the order of the file."""

    size: tuple[int, int]
    regions: tuple[tuple[int, Any], ...]


Label = DepthFile | MaskFile | Polygons | int


@dataclass(frozen=True)
class Example:
    """A photo with its label; None: a teacher is to give it.

    name: stable, relative to its source. set_name: what weights and scores are grouped by. group: photos of one scene,
    which are never divided between training and validation. setting: "indoor", "outdoor" or None where the data do not
    say.
    """

    photo: Path
    name: str
    set_name: str
    group: str
    label: Label | None
    setting: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Examples and, of class labels, the names in the order of their numbers."""

    examples: tuple[Example, ...]
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()


def photos_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, in natural order; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted((path for path in files if path.is_file()), key=natural_key)


def _folder(text: str, option: str = "--data") -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise UserError(f"{option} {text} is no folder; check the path")
    return path


# --- depth ---


def read_depth_dataset(text: str) -> Dataset:
    """Pairs of photo and depth in one of the known layouts. UserError where the folder has none."""
    root = _folder(text)
    readers: tuple[Callable[[Path], list[Example]], ...] = (
        _from_index, _from_depth_json, _from_tum, _from_kitti, _from_two_folders, _from_neighbours,
    )  # fmt: skip
    for reader in readers:
        examples = reader(root)
        if examples:
            return Dataset(tuple(examples))
    raise UserError(
        f"--data {text} holds no pairs of photo and depth; allowed: index.jsonl, depth.json, TUM's rgb.txt and "
        "depth.txt, KITTI's proj_depth/groundtruth, folders rgb/ and depth/ with files of the same names, or NAME.png "
        "beside NAME.jpg"
    )


def _focal_px(value: Any, where: str) -> float | None:
    if value is None:
        return None
    K = pinhole_matrix(value, where)
    return float(np.sqrt(K[0, 0] * K[1, 1]))


def _from_index(root: Path) -> list[Example]:
    """`index.jsonl`: a line a file; a depth map has the kind "rgbd", the ending .png, and its photo beside it.

    Fields: file, scale ("metric": millimetres; "relative_disparity"), and optionally scene, K (of the photo) and tags
    ("indoor" or "outdoor" among them).
    """
    index = root / "index.jsonl"
    if not index.exists():
        return []
    examples = []
    for number, line in enumerate(read_text(index, "an index of files").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{index}, line {number}"
        fields = Fields(parse_json(line, where), where)
        file = fields.text("file")
        if fields.text("kind", None) != "rgbd" or not file.endswith(".png"):
            continue
        path = file_in(root, file)
        photo = next((p for p in (path.with_suffix(s) for s in (".jpg", ".jpeg")) if is_file(p)), None)
        if photo is None or not is_file(path):
            raise UserError(f"{where}: {shown(file)} or its photo is not there")
        scale = fields.text("scale", "metric")
        if scale not in ("metric", "relative_disparity"):
            raise UserError(f"{where} has the scale {shown(scale)}; allowed: metric, relative_disparity")
        kind: DepthKind = "metric" if scale == "metric" else "disparity"
        units = MILLIMETRES if kind == "metric" else 65535.0
        label = DepthFile(path, kind, units, _focal_px(fields.get("K"), f"{where}: K"))
        set_name = Path(file).parts[0] if len(Path(file).parts) > 1 else root.name
        scene = fields.text("scene", None)
        group = f"{set_name}/{file if scene is None else scene}"
        tags = fields.items_of("tags") if "tags" in fields else ()
        setting = next((tag for tag in SETTINGS if tag in tags), None)
        examples.append(Example(photo, file, set_name, group, label, setting))
    return examples


def _from_depth_json(root: Path) -> list[Example]:
    """`depth.json`: {"items": [{"id", "rgb", "depth", "depth_scale", "K"}]}."""
    path = root / "depth.json"
    if not path.exists():
        return []
    examples = []
    for item in Fields(read_json(path), str(path)).objects("items"):
        name = item.text("id")
        photo, depth = file_in(root, item.text("rgb")), file_in(root, item.text("depth"))
        lacking = next((file for file in (photo, depth) if not is_file(file)), None)
        if lacking is not None:
            raise UserError(f"{item.where}: {lacking} is not there")
        units = item.number("depth_scale", MILLIMETRES, 1e-6, 1e9)
        label = DepthFile(depth, "metric", units, _focal_px(item.get("K"), f"{item.where}: K"))
        setting = item.text("setting", None)
        examples.append(Example(photo, name, name.rsplit("_", 1)[0], name, label, setting))
    return examples


TUM_UNITS = 5000.0
TUM_SECONDS = 0.02  # between a photo and its depth map


def _from_tum(root: Path) -> list[Example]:
    """TUM RGB-D: `rgb.txt` and `depth.txt` (time, file) in the folder or one below; pairs by the nearest time."""
    examples = []
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if not ((folder / "rgb.txt").exists() and (folder / "depth.txt").exists()):
            continue
        depths = _timed(folder / "depth.txt")
        times = np.array([time for time, _ in depths])
        for time, file in _timed(folder / "rgb.txt"):
            nearest = int(np.abs(times - time).argmin()) if len(times) else -1
            if nearest < 0 or abs(times[nearest] - time) > TUM_SECONDS:
                continue
            photo, depth = file_in(folder, file), file_in(folder, depths[nearest][1])
            label = DepthFile(depth, "metric", TUM_UNITS, None)
            examples.append(Example(photo, f"{folder.name}/{file}", folder.name, folder.name, label))
    return examples


def _timed(path: Path) -> list[tuple[float, str]]:
    rows = []
    for number, line in enumerate(read_text(path, "a list of times and files").splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        try:
            rows.append((float(words[0]), words[1]))
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}, line {number}: a time and a file are needed; received {shown(line)}") from error
    return rows


KITTI_UNITS = 256.0


def _from_kitti(root: Path) -> list[Example]:
    """KITTI depth: `DRIVE/proj_depth/groundtruth/image_0N/NAME.png` with `DRIVE/image_0N/data/NAME.png` anywhere."""
    maps = sorted(root.glob("**/proj_depth/groundtruth/image_0[23]/*.png"))
    photos = {tuple(p.parts[-4:]): p for p in root.glob("**/image_0[23]/data/*.png")} if maps else {}
    examples, focals = [], {}
    for path in maps:
        drive, camera = path.parts[-5], path.parent.name
        photo = photos.get((drive, camera, "data", path.name))
        if photo is None:
            continue
        date = photo.parents[3]
        if (date, camera) not in focals:
            focals[date, camera] = _kitti_focal_px(date / "calib_cam_to_cam.txt", camera)
        label = DepthFile(path, "metric", KITTI_UNITS, focals[date, camera])
        examples.append(Example(photo, f"{drive}/{camera}/{path.name}", "kitti", drive, label))
    if maps and not examples:
        raise UserError(f"{root} has KITTI's depth maps but not their photos DRIVE/image_02/data/NAME.png")
    return examples


def _kitti_focal_px(path: Path, camera: str) -> float | None:
    if not path.exists():
        return None
    found = re.search(rf"^P_rect_{camera[-2:]}: *(\S+)", read_text(path, "KITTI's calibration"), re.M)
    try:
        return float(found[1]) if found else None
    except ValueError as error:
        raise UserError(f"{path} has no focal length of camera {camera[-2:]}") from error


FOLDERS = (("rgb", "depth"), ("image", "depth"), ("images", "depths"), ("images", "depth"), ("color", "depth"))


def _from_two_folders(root: Path) -> list[Example]:
    """`rgb/NAME.jpg` and `depth/NAME.png` (millimetres, or what `depth_scale` in K.json says) or `.npz`."""
    for photos, depths in FOLDERS:
        if (root / photos).is_dir() and (root / depths).is_dir():
            return list(_pairs(root, photos_in(root / photos), root / depths))
    return []


def _from_neighbours(root: Path) -> list[Example]:
    """`NAME.jpg` beside `NAME.png`, in the folder or, each a set, in the folders below it."""
    folders = (root, *sorted(path for path in root.iterdir() if path.is_dir()))
    return [
        example
        for folder in folders
        for example in _pairs(folder, [p for p in photos_in(folder) if p.suffix.lower() in (".jpg", ".jpeg")], folder)
    ]


def _pairs(root: Path, photos: Sequence[Path], depths: Path) -> Iterator[Example]:
    facts = root / "K.json"
    fields = Fields(read_json(facts) if facts.exists() else {}, str(facts))
    focal_px = _focal_px(fields.get("K"), f"{facts}: K")
    units = fields.number("depth_scale", MILLIMETRES, 1e-6, 1e9)
    for photo in photos:
        path = next((p for p in (depths / f"{photo.stem}{s}" for s in (".png", ".npz")) if is_file(p)), None)
        if path is not None and path != photo:
            label = DepthFile(path, "metric", units, focal_px)
            yield Example(photo, f"{root.name}/{photo.name}", root.name, f"{root.name}/{photo.stem}", label)


# --- segmentation ---


MASK_FOLDERS = ("masks", "labels", "annotations", "SegmentationClass")
PHOTO_FOLDERS = ("images", "JPEGImages", "photos")


def read_segmentation_dataset(text: str) -> Dataset:
    """Photos and masks of the same names, or photos and a COCO JSON. UserError where the folder has neither."""
    root = _folder(text)
    if (root / "annotations" / "validation").is_dir():
        return _from_ade20k(root)
    if (root / "gtFine").is_dir():
        return _from_cityscapes(root)
    folder = next((root / name for name in PHOTO_FOLDERS if (root / name).is_dir()), root)
    photos = photos_in(folder)
    masks = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    json_files = [path for path in sorted(root.glob("*.json")) if path.name not in ("classes.json",)]
    if masks is not None and photos:
        return _from_masks(root, photos, masks)
    if len(json_files) == 1 and photos:
        return _from_coco(json_files[0], folder)
    raise UserError(
        f"--data {text} holds no photos with masks; allowed: images/NAME.jpg with masks/NAME.png and classes.txt, "
        "images/ with one COCO JSON, ADE20K's annotations/, or Cityscapes' gtFine/"
    )


def _from_masks(root: Path, photos: Sequence[Path], masks: Path) -> Dataset:
    listed = root / "classes.txt"
    if not listed.exists():
        raise UserError(f"{listed} is not there; it names the classes, one a line, in the order of their numbers")
    classes = tuple(line.strip() for line in read_text(listed, "a list of classes").splitlines() if line.strip())
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(f"{listed} names {len(classes)} classes; allowed: 2 to {MOST_CLASSES}")
    examples = []
    for photo in photos:
        path = masks / f"{photo.stem}.png"
        if not is_file(path):
            raise UserError(f"the photo {photo} has no mask {path}")
        label = MaskFile(path, len(classes))
        examples.append(Example(photo, f"{root.name}/{photo.name}", root.name, f"{root.name}/{photo.stem}", label))
    return Dataset(tuple(examples), classes)


def _from_ade20k(root: Path) -> Dataset:
    """ADE20K's scene parsing benchmark: `images/SPLIT`, `annotations/SPLIT` (0: none), and objectInfo150.txt.

    The set is the validation split; where there is none but it, nothing else is read.
    """
    info = root / "objectInfo150.txt"
    lines = read_text(info, "ADE20K's list of classes").splitlines()[1:]
    classes = tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip())
    if not 2 <= len(classes) < MOST_CLASSES:
        raise UserError(f"{info} names {len(classes)} classes; ADE20K has 150")
    ids = tuple(range(1, len(classes) + 1))
    examples = []
    for photo in photos_in(root / "images" / "validation"):
        label = MaskFile(root / "annotations" / "validation" / f"{photo.stem}.png", len(classes), ids)
        examples.append(Example(photo, f"validation/{photo.name}", "ade20k", photo.stem, label))
    return Dataset(tuple(examples), classes)


# M. Cordts et al., "The Cityscapes Dataset", CVPR 2016: the 19 classes that are scored, and their numbers in the files
CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip


def _from_cityscapes(root: Path) -> Dataset:
    """Cityscapes: `leftImg8bit/val/CITY/NAME_leftImg8bit.png` and `gtFine/val/CITY/NAME_gtFine_labelIds.png`."""
    examples = []
    for photo in sorted((root / "leftImg8bit" / "val").glob("*/*_leftImg8bit.png")):
        name = photo.name.removesuffix("_leftImg8bit.png")
        path = root / "gtFine" / "val" / photo.parent.name / f"{name}_gtFine_labelIds.png"
        label = MaskFile(path, len(CITYSCAPES), tuple(CITYSCAPES.values()))
        examples.append(Example(photo, f"val/{name}", "cityscapes", name, label))
    if not examples:
        raise UserError(f"{root} has Cityscapes' gtFine, but no photos leftImg8bit/val/CITY/NAME_leftImg8bit.png")
    return Dataset(tuple(examples), tuple(CITYSCAPES))


def _from_coco(path: Path, folder: Path) -> Dataset:
    """COCO's `images`, `annotations` and `categories`; class 0 is what no region covers."""
    content = Fields(read_json(path), str(path))
    categories = content.objects("categories")
    numbers = {category.integer("id"): index + 1 for index, category in enumerate(categories)}
    classes = ("background", *(category.text("name") for category in categories))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(f"{path} has {len(categories)} categories; allowed: 1 to {MOST_CLASSES - 1}")
    regions: dict[int, list[tuple[int, Any]]] = {}
    for annotation in content.objects("annotations"):
        number = annotation.integer("category_id")
        if number not in numbers:
            raise UserError(f"{annotation.where} has the category {number}, which the file does not define")
        regions.setdefault(annotation.integer("image_id"), []).append((numbers[number], annotation["segmentation"]))
    examples = []
    for image in content.objects("images"):
        file = image.text("file_name")
        photo = next((p for p in (file_in(folder, file), file_in(path.parent, file)) if is_file(p)), None)
        if photo is None:
            raise UserError(f"{image.where}: the photo {shown(file)} is not in {folder}")
        size = image.integer("width", low=1), image.integer("height", low=1)
        label = Polygons(size, tuple(regions.get(image.integer("id"), ())))
        set_name = path.parent.name
        examples.append(Example(photo, f"{set_name}/{file}", set_name, f"{set_name}/{file}", label))
    return Dataset(tuple(examples), classes)


# --- classification ---


def read_classification_dataset(text: str) -> Dataset:
    """A folder a class, named by it. UserError for fewer than two classes, and for one of fewer than two photos."""
    root = _folder(text)
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural_key)
    photos = {folder.name: photos_in(folder) for folder in folders}
    empty = [name for name, files in photos.items() if not files]
    if empty:
        console.note(f"{root}: {', '.join(empty[:3])} hold no photos and are left out")
    photos = {name: files for name, files in photos.items() if files}
    if len(photos) < 2:
        raise UserError(
            f"--data {text} needs a folder of photos for each of at least two classes; it has {len(photos)}"
        )
    few = [name for name, files in photos.items() if len(files) < LEAST_OF_A_CLASS]
    if few:
        raise UserError(
            f"the class folder {root / few[0]} holds {len(photos[few[0]])} photo; each class needs at least "
            f"{LEAST_OF_A_CLASS}, one to train on and one to hold out"
        )
    examples = [
        Example(path, f"{name}/{path.name}", name, f"{name}/{path.name}", number)
        for number, (name, files) in enumerate(photos.items())
        for path in files
    ]
    return Dataset(tuple(examples), tuple(photos))


READERS: dict[str, Callable[[str], Dataset]] = {
    "depth": read_depth_dataset,
    "segmentation": read_segmentation_dataset,
    "classification": read_classification_dataset,
}


def read_datasets(task: str, sources: Sequence[str], left_out: Sequence[str] = ()) -> Dataset:
    """All `sources` of a task as one; sets named in `left_out` are not read.

    UserError for sources of different classes, for a photo that two sources call by one name, and for a name in
    `left_out` that no set has.
    """
    read = [READERS[task](text) for text in sources]
    classes = {dataset.classes for dataset in read}
    if len(classes) > 1:
        raise UserError(f"--data: {sources[0]} and another source have different classes; train on one list of classes")
    examples = [example for dataset in read for example in dataset.examples]
    sets = Counter(example.set_name for example in examples)
    unknown = [name for name in left_out if name not in sets]
    if unknown:
        raise UserError(f"--leave-out {unknown[0]} is no set of the data; it has: {', '.join(sorted(sets))}")
    twice = [name for name, count in Counter(example.name for example in examples).items() if count > 1]
    if twice:
        raise UserError(f"--data: the photo {shown(twice[0])} is in two sources; name each source once")
    kept = tuple(example for example in examples if example.set_name not in left_out)
    if not kept:
        raise UserError("--leave-out leaves no photo to train on")
    return Dataset(kept, read[0].classes if read else (), read[0].palette if read else ())


def photos_dataset(sources: Sequence[str], teacher: str) -> Dataset:
    """Photos without labels (folders or .txt lists) that a teacher labels: the set of its name, each a scene.

    UserError for a source that is missing or empty.
    """
    examples = []
    for text in sources:
        source = open_source(text)
        for index in range(len(source)):
            name = f"{teacher}/{source.name(index)}"
            examples.append(Example(Path(source.label(index)), name, teacher, name, None))
    return Dataset(tuple(examples), CLASSES if teacher == "mosaic" else ())
