"""Cameras with their lenses, read from what calibration tools write.

Read: a COLMAP camera in words, cameras.txt, cameras.bin or a COLMAP model's folder, nerfstudio's transforms.json,
dune's scene.json, OpenCV's calibration files (YAML and XML; also ROS's camera_info), and Kalibr's camera chains (YAML).
Formats: COLMAP, "Output Format"; nerfstudio, "Data conventions"; OpenCV, calib3d and samples/cpp/calibration.cpp;
Kalibr wiki, "YAML formats" and "Supported models". COLMAP and nerfstudio put (0.5, 0.5) at the centre of the top-left
pixel, the others (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import MODELS, SPHERE, Camera
from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.camera_checks import LARGEST_RADIAL, LARGEST_SIDE_PX, pinhole_matrix
from dune_cli.io.colmap.read import ColmapCamera, model_folder, open_model, read_cameras
from dune_cli.io.json_files import Fields, finite_array
from dune_cli.io.photos import is_sphere_shaped
from dune_cli.io.safe_read import is_file, quoted, read_text, shown

CALIBRATION_LIMIT_BYTES = 1 << 20  # of a YAML or XML file
MOST_YAML_NODES = 100_000
SMALLEST_SPHERE_PX = 16
MATRIX_NAMES = ("cameramatrix", "k", "intrinsicmatrix", "mtx")  # of calibrations, in lower case, without _
CAMERA_FILES = ("cameras.txt", "cameras.bin")
ROS_MODELS = {
    "plumb_bob": "radtan",
    "rational_polynomial": "radtan",
    "equidistant": "equidistant",
    "fisheye": "equidistant",
}


class NoIntrinsics(UserError):
    """A file that could hold cameras and holds none."""


@dataclass(frozen=True)
class CameraEntry:
    """A camera as a file has it, of images of `size` (width, height) in pixels, None where the file does not say.

    `model` and `params` as in `Camera`, pixel centres at integers. `stored`: whether files of this kind describe the
    stored pixels of a photo that EXIF turns. `lens_known`: False where the entry says nothing about distortion.
    `fov_rad`: of a PINHOLE without parameters, the field of view across the width of its images, whatever their size.
    """

    model: str
    params: tuple[float, ...]
    size: tuple[int, int] | None = None
    stored: bool = False
    lens_known: bool = True
    fov_rad: float | None = None

    @classmethod
    def of(cls, camera: Camera, stored: bool = False) -> CameraEntry:
        return cls(camera.model, camera.params, (camera.width, camera.height), stored)

    def camera(self, width: int, height: int) -> Camera:
        """The camera of its images, which are of `width` x `height` px where the entry does not say."""
        if self.fov_rad is not None:
            return Camera.pinhole(K_from_focal(width / 2 / math.tan(self.fov_rad / 2), width, height), width, height)
        return Camera(self.model, self.params, *(self.size or (width, height)))


@dataclass(frozen=True)
class CameraTable:
    """The cameras of a file: by image `named`, and all `others` (such as those of cameras.txt, by their number)."""

    where: str
    named: dict[str, CameraEntry]
    others: dict[str, CameraEntry]


def parse_camera(text: str) -> CameraEntry | None:
    """A COLMAP camera in words: MODEL, WIDTH, HEIGHT (these two may be left out) and PARAMS, separated by commas or
    spaces, with its CAMERA_ID before them or not; parameters as COLMAP has them. None for a text that names no model
    first. UserError for an unknown model, and for words that are not its numbers."""
    words = text.replace(",", " ").split()
    if len(words) > 1 and words[0].isdecimal() and not _is_number(words[1]):
        words = words[1:]
    if not words or _is_number(words[0]) or not words[0].replace("_", "").isalpha():
        return None
    model, values = words[0].upper(), words[1:]
    if model not in MODELS:
        if not values or not all(map(_is_number, values)):
            return None
        raise UserError(f"the camera model {shown(words[0])} is unknown; allowed: {', '.join(MODELS)}")
    count = len(MODELS[model].parameters)
    names = ", ".join(MODELS[model].parameters)
    wrong = [word for word in values if not _is_number(word)]
    if wrong or len(values) not in (count, count + 2):
        what = f"has {quoted(wrong[0])} among them" if wrong else f"got {len(values)}"
        raise UserError(
            f"the camera {model} takes WIDTH, HEIGHT and its {count} parameters ({names}), and {what}; give all of them"
        )
    numbers = [float(word) for word in values]
    size = None
    if len(numbers) > count:
        size = _size(numbers[:2], f"the camera {model}")
        numbers = numbers[2:]
    return _entry(model, _from_colmap(model, numbers), size, f"the camera {model}")


def read_camera_file(path: Path) -> CameraTable | None:
    """The cameras of a file or folder that exists; None for one that is of no kind that is read here (a JSON table of
    matrices). UserError for a damaged one, and for cameras that have no model here."""
    if path.is_dir() or path.name.lower() in CAMERA_FILES:
        return _from_colmap_files(path)
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _from_calibration(path, _read_yaml(path))
    if suffix == ".xml":
        return _from_calibration(path, _read_xml(path))
    if suffix in (".txt", ".bin"):
        return _from_colmap_files(path)
    return None


def json_cameras(path: Path, document: dict[str, Any]) -> CameraTable | None:
    """The cameras of transforms.json, of dune's scene.json, and of a calibration of OpenCV in JSON; None for another
    object."""
    frames = document.get("frames")
    if isinstance(frames, list) and any(isinstance(frame, dict) and "T_cam_to_world" in frame for frame in frames):
        return _from_posed_set(path, document)
    if isinstance(frames, list) or "fl_x" in document or "camera_angle_x" in document:
        return _from_transforms(path, document)
    if isinstance(document.get("cameras"), list):
        return _from_scene(path, document)
    if any(_plain(name) in MATRIX_NAMES for name in document):
        return _from_calibration(path, document)
    return None


def camera_object(value: Any, where: str, size: tuple[int, int] | None = None, stored: bool = False) -> CameraEntry:
    """The camera of a JSON object with `model`, `params` (pixel centres at integers) and, where they are not given,
    `width` and `height`."""
    fields = Fields(value, where)
    model = fields.text("model")
    if model not in MODELS:
        raise UserError(f"{where}: the camera model {shown(model)} is unknown; allowed: {', '.join(MODELS)}")
    if model == SPHERE and fields.get("params") is None:
        return CameraEntry(SPHERE, (2.0, 1.0), size, stored)  # of any size
    count = len(MODELS[model].parameters)
    params = fields.items_of("params")
    if len(params) != count:
        raise UserError(
            f"{where}: {model} has the {count} parameters {', '.join(MODELS[model].parameters)}, not {len(params)}"
        )
    if size is None and fields.get("width") is not None:
        size = _size([fields.number("width"), fields.number("height")], where)
    return _entry(model, tuple(finite_array(params, (count,), f"{where}: params").tolist()), size, where, stored)


def colmap_camera_entry(model: str, params: Sequence[float], where: str) -> CameraEntry:
    """The entry of a COLMAP model and parameters as COLMAP has them, of images of any size. UserError for others."""
    name = model.upper()
    if name not in MODELS:
        raise UserError(f"{where}: the camera model {shown(model)} is unknown; allowed: {', '.join(MODELS)}")
    values = finite_array(list(params), (len(MODELS[name].parameters),), f"{where}: parameters of {name}").tolist()
    return _entry(name, _from_colmap(name, values), None, where, stored=True)


def colmap_entry(camera: ColmapCamera) -> CameraEntry:
    """The entry of a COLMAP model's camera."""
    params = _from_colmap(camera.model_name, camera.params)
    return CameraEntry(camera.model_name, params, (camera.width, camera.height), stored=True)


def frame_entry(frame: dict[str, Any], where: str) -> CameraEntry | None:
    """The camera of a frame of transforms.json, in which the document's own fields are merged; None without one.

    Formulas: k1, k2, p1, p2 (and k3) of OPENCV, k1 to k4 of OPENCV_FISHEYE. UserError for other lenses.
    """
    fields = Fields({key: value for key, value in frame.items() if value is not None}, where)
    size = None
    if "w" in fields and "h" in fields:
        size = _size([fields.number("w"), fields.number("h")], where)
    if fields.text("camera_model", "").upper() == SPHERE and size is not None:
        return _entry(SPHERE, (float(size[0]), float(size[1])), size, where, stored=True)
    if "fl_x" in fields or "fl_y" in fields:
        fx = fields.number("fl_x", None)
        fy = fields.number("fl_y", None)
        fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
    elif "camera_angle_x" in fields:
        angle = fields.number("camera_angle_x", low=1e-6, high=math.pi - 1e-6)
        if size is None:  # NeRF's synthetic scenes
            return CameraEntry("PINHOLE", (), None, stored=True, lens_known=False, fov_rad=angle)
        fx = fy = size[0] / 2 / math.tan(angle / 2)
    else:
        return None
    if "cx" in fields or size is None:
        centre = (fields.number("cx") - 0.5, fields.number("cy") - 0.5)
    else:
        centre = ((size[0] - 1) / 2, (size[1] - 1) / 2)
    model = fields.text("camera_model", "OPENCV_FISHEYE" if fields.get("is_fisheye") is True else "OPENCV").upper()
    k = [fields.number(f"k{i}", 0.0) for i in range(1, 5)]
    p = [fields.number(f"p{i}", 0.0) for i in range(1, 3)]
    if model in ("OPENCV_FISHEYE", "FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"):
        if any(p):
            raise UserError(f"{where}: a fisheye lens with p1 and p2 is not read; undistort the photos first")
        return _entry("OPENCV_FISHEYE", (fx, fy, *centre, *k), size, where, stored=True)
    if model not in ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE", "FULL_OPENCV"):
        raise UserError(
            f"{where}: the camera_model {shown(model)} is not read; allowed: PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV, "
            "OPENCV_FISHEYE, EQUIRECTANGULAR"
        )
    return _brown((fx, fy, *centre), [k[0], k[1], p[0], p[1], k[2], k[3]], size, where, stored=True)


def _from_colmap_files(path: Path) -> CameraTable:
    if not path.is_dir():
        cameras = read_cameras(path)
        return CameraTable(str(path), {}, {str(number): colmap_entry(camera) for number, camera in cameras.items()})
    folder = model_folder(path)
    if folder is None:
        alone = next((path / name for name in reversed(CAMERA_FILES) if is_file(path / name)), None)
        if alone is None:
            raise UserError(f"{path} holds no COLMAP model; name a folder with cameras and images (.bin or .txt)")
        return _from_colmap_files(alone)
    images = open_model(folder).images.values()
    return CameraTable(
        str(path),
        {image.name: colmap_entry(image.camera) for image in images},
        {str(image.camera.camera_id): colmap_entry(image.camera) for image in images},
    )


def _from_transforms(path: Path, document: dict[str, Any]) -> CameraTable:
    shared = {key: value for key, value in document.items() if key != "frames"}
    named, others = {}, {}
    frames = document.get("frames", [])
    for index, frame in enumerate(frames if isinstance(frames, list) else []):
        where = f"{path}, frame {index}"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise UserError(f"{where} has no file_path; write the file again")
        entry = frame_entry(shared | frame, where)
        if entry is not None:
            named[frame["file_path"]] = entry
    whole = frame_entry(shared, str(path)) if not named or "fl_x" in shared or "camera_angle_x" in shared else None
    if whole is not None:
        others["the whole file's"] = whole
    if not named and not others:
        raise NoIntrinsics(f"{path} has no fl_x, cx and cy; give a transforms.json with intrinsics")
    return CameraTable(str(path), named, others or dict(named))


def _from_scene(path: Path, document: dict[str, Any]) -> CameraTable:
    named = {}
    stored = document.get("image_size_is") == "stored"
    for fields in Fields(document, str(path)).objects("cameras"):
        name = fields.text("image")
        if fields.get("width") is None or (fields.get("camera") is None and fields.get("K") is None):
            continue
        size = _size([fields.number("width"), fields.number("height")], fields.where)
        if fields.get("camera") is not None:
            entry = camera_object(fields["camera"], f"{fields.where}: camera", size, stored)
        else:
            K = pinhole_matrix(fields["K"], f"{fields.where}: K", *size)
            radial = fields.number("radial", 0.0, -LARGEST_RADIAL, LARGEST_RADIAL)
            entry = replace(CameraEntry.of(Camera.brown(K, [radial], *size)), stored=stored)
        named[name] = entry
    if not named:
        raise NoIntrinsics(f"{path} has no camera with a size and K; give the scene.json of dune reconstruct")
    return CameraTable(str(path), named, dict(named))


def _from_posed_set(path: Path, document: dict[str, Any]) -> CameraTable:
    """Of the cameras.json of `dune eval`."""
    named = {}
    for fields in Fields(document, str(path)).objects("frames"):
        if fields.get("K") is None:
            continue
        size = _size([fields.number("width"), fields.number("height")], fields.where)
        K = pinhole_matrix(fields["K"], f"{fields.where}: K", *size)
        radial = fields.number("dist_k1", 0.0, -LARGEST_RADIAL, LARGEST_RADIAL)
        named[fields.text("file")] = CameraEntry.of(Camera.brown(K, [radial], *size))
    if not named:
        raise NoIntrinsics(f"{path} has no frame with K; give the cameras of its photos")
    return CameraTable(str(path), named, dict(named))


# OpenCV's, ROS's and Kalibr's files.


def _from_calibration(path: Path, document: Any) -> CameraTable:
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no calibration; allowed: OpenCV's camera_matrix, or Kalibr's cam0")
    chain = {name: cam for name, cam in document.items() if isinstance(cam, dict) and "intrinsics" in cam}
    if "intrinsics" in document:  # one camera of Kalibr's, without its name; EuRoC's sensor.yaml
        chain = {"its camera": document}
    if chain:
        cameras = {name: _kalibr_camera(cam, f"{path}: {shown(name)}") for name, cam in chain.items()}
        return CameraTable(str(path), {}, cameras)
    return CameraTable(str(path), {}, {"its camera": _opencv_camera(document, str(path))})


def _kalibr_camera(cam: dict[str, Any], where: str) -> CameraEntry:
    model, lens = str(cam.get("camera_model", "pinhole")), str(cam.get("distortion_model", "none"))
    values = _numbers(cam.get("intrinsics"), f"{where}: intrinsics")
    lens = "radtan" if lens == "radial-tangential" else lens
    coefficients = cam.get("distortion_coeffs", cam.get("distortion_coefficients", []))
    terms = _numbers(coefficients, f"{where}: distortion_coeffs")
    resolution = cam.get("resolution")
    size = None if resolution is None else _size(_numbers(resolution, f"{where}: resolution"), where)
    if model == "eucm" and lens == "none" and len(values) == 6:
        alpha, beta, *pinhole = values
        return _entry("EUCM", (*pinhole, alpha, beta), size, where)
    if model != "pinhole" or lens not in ("radtan", "equidistant", "fov", "none"):
        raise UserError(
            f"{where} has the camera_model {shown(model)} with {shown(lens)}; allowed: pinhole with radtan, "
            "equidistant, fov or none, and eucm with none; calibrate the camera again with one of these"
        )
    needed = {"radtan": (4, 5), "equidistant": (4,), "fov": (1,), "none": (0, 4)}[lens]
    if len(values) != 4 or len(terms) not in needed:
        raise UserError(
            f"{where} has {len(values)} intrinsics and {len(terms)} distortion_coeffs; pinhole with {lens} has 4 and "
            f"{needed[0]}"
        )
    if lens == "equidistant":
        return _entry("OPENCV_FISHEYE", (*values, *terms), size, where)
    if lens == "fov":
        return _entry("FOV", (*values, *terms), size, where)
    return _brown(tuple(values), terms if lens == "radtan" else [], size, where)


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _opencv_camera(document: dict[str, Any], where: str) -> CameraEntry:
    found = {_plain(name): value for name, value in document.items() if isinstance(name, str)}

    def first(*names: str) -> Any:
        return next((found[name] for name in names if name in found), None)

    matrix = first(*MATRIX_NAMES)
    if matrix is None:
        raise UserError(
            f"{where} has no camera_matrix and no cam0 with intrinsics; allowed: OpenCV's calibration (YAML or XML), "
            "ROS's camera_info and Kalibr's camera chain"
        )
    K = np.array(_numbers(matrix, f"{where}: camera_matrix"))
    if len(K) != 9:
        raise UserError(f"{where}: camera_matrix has {len(K)} numbers; it must be 3 x 3")
    K = K.reshape(3, 3)
    if K[2, 0] > 0 and K[0, 2] == 0:  # Open3D writes its matrix by columns
        K = K.T
    if abs(K[0, 1]) > 1e-6 * abs(K[0, 0]) or K[1, 0] != 0 or not np.array_equal(K[2], (0, 0, 1)):
        raise UserError(f"{where}: camera_matrix has skew, or another last row than 0 0 1; calibrate without skew")
    coefficients = first("distortioncoefficients", "distcoeffs", "distcoefs", "distcoeff", "d", "distortion", "dist")
    terms = [] if coefficients is None else _numbers(coefficients, f"{where}: distortion_coefficients")
    size_text = first("imagesize", "resolution")
    width, height = first("imagewidth", "width"), first("imageheight", "height")
    size = None
    if width is not None and height is not None:
        size = _size([*_numbers(width, where), *_numbers(height, where)], where)
    elif size_text is not None:
        size = _size(_numbers(size_text, f"{where}: image_size"), where)
    lens = first("distortionmodel", "cameramodel")
    kind = ROS_MODELS.get(str(lens).lower(), "radtan" if lens is None else "")
    if str(first("fisheyemodel", "fisheye")).lower() in ("1", "true", "1."):
        kind = "equidistant"
    if not kind:
        raise UserError(
            f"{where}: the distortion_model {shown(str(lens))} is not read; allowed: {', '.join(ROS_MODELS)}"
        )
    pinhole = tuple(map(float, (K[0, 0], K[1, 1], K[0, 2], K[1, 2])))
    if kind == "equidistant":
        if len(terms) != 4:
            raise UserError(f"{where} has {len(terms)} distortion_coefficients; a fisheye lens has 4")
        return _entry("OPENCV_FISHEYE", (*pinhole, *terms), size, where)
    if len(terms) == 4 and any(terms) and lens is None and first("fisheyemodel", "fisheye") is None:
        console.note_once(
            f"{where} does not say of which kind its four distortion coefficients are, and they are taken for k1, k2, "
            "p1, p2; for those of a fisheye lens (cv2.fisheye) add fisheye_model: 1",
            "calibrations",
        )
    return replace(_brown(pinhole, terms, size, where), lens_known=coefficients is not None)


def _brown(
    pinhole: tuple[float, ...], terms: Sequence[float], size: tuple[int, int] | None, where: str, stored: bool = False
) -> CameraEntry:
    """The simplest model with OpenCV's k1, k2, p1, p2, k3, k4 to k6, of which 0 to 14 are given. nerfstudio's k4 stands
    after k3 where `stored`, and is the term of r⁸, which no model here has."""
    if len(terms) not in (0, 4, 5, 6, 8, 12, 14):
        raise UserError(f"{where} has {len(terms)} distortion coefficients; OpenCV writes 4, 5, 8, 12 or 14")
    if any(terms[8:]) or (stored and any(terms[5:])) or (len(terms) == 6 and not stored and terms[5]):
        raise UserError(
            f"{where} has terms of a thin prism, a tilted sensor or r⁸, which are not read; calibrate with k1, k2, p1, "
            "p2, k3 (and k4 to k6) alone"
        )
    k1, k2, p1, p2, k3, k4, k5, k6 = (*terms[:8], *[0.0] * (8 - len(terms[:8])))
    if k3 or k4 or k5 or k6:
        return _entry("FULL_OPENCV", (*pinhole, k1, k2, p1, p2, k3, k4, k5, k6), size, where, stored)
    if k1 or k2 or p1 or p2:
        return _entry("OPENCV", (*pinhole, k1, k2, p1, p2), size, where, stored)
    return _entry("PINHOLE", pinhole, size, where, stored)


def _entry(
    model: str, params: tuple[float, ...], size: tuple[int, int] | None, where: str, stored: bool = False
) -> CameraEntry:
    if not np.isfinite(params).all():
        raise UserError(f"{where} has parameters that are not finite; give finite ones")
    focals = MODELS[model].focals
    if not focals:
        width, height = params
        if not (2 * SMALLEST_SPHERE_PX <= width <= LARGEST_SIDE_PX and is_sphere_shaped(*params)):
            raise UserError(
                f"{where} is a panorama ({model}) of {width:g} x {height:g} px; a sphere is twice as wide as high"
            )
        return CameraEntry(model, (float(width), float(height)), size, stored)
    if min(params[:focals]) <= 0:
        raise UserError(f"{where} has a focal length of {min(params[:focals]):g}; it must be positive pixels")
    if max(map(abs, params[focals + 2 :]), default=0.0) > LARGEST_RADIAL:
        raise UserError(f"{where} has a distortion of {max(map(abs, params[focals + 2 :])):g}, which no lens has")
    if model == "EUCM" and not (0 <= params[4] <= 1 and params[5] > 0):
        raise UserError(f"{where} has alpha {params[4]:g} and beta {params[5]:g}; alpha is 0 to 1, and beta positive")
    return CameraEntry(model, tuple(map(float, params)), size, stored)


def _from_colmap(model: str, params: Sequence[float]) -> tuple[float, ...]:
    return Camera.from_colmap(model, params, 1, 1).params


def _size(values: Sequence[float], where: str) -> tuple[int, int]:
    if len(values) != 2 or not all(math.isfinite(v) and v == int(v) and 1 <= v <= LARGEST_SIDE_PX for v in values):
        text = " x ".join(f"{value:g}" for value in values[:3])
        raise UserError(f"{where} has an image size of {text}; two whole numbers of pixels are needed")
    return int(values[0]), int(values[1])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.isascii() and "_" not in word


def _numbers(value: Any, where: str) -> list[float]:
    """The numbers of a node of YAML, XML or JSON: a scalar, nested lists, a text of numbers, or an OpenCV matrix
    (`data`)."""
    numbers: list[float] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict) and "data" in item:
            stack.append(item["data"])
        elif isinstance(item, list):
            stack.extend(reversed(item))
        elif isinstance(item, str) and all(map(_is_number, item.split())):
            numbers.extend(map(float, item.split()))
        elif isinstance(item, (int, float)) and not isinstance(item, bool):  # of JSON
            numbers.append(float(item))
        else:
            raise UserError(f"{where} holds {shown(str(item))}, where numbers are needed")
        if len(numbers) > 64:
            raise UserError(f"{where} holds more numbers than a camera has; write the calibration again")
    if not np.isfinite(numbers).all():
        raise UserError(f"{where} holds numbers that are not finite; give finite ones")
    return numbers


def _read_yaml(path: Path) -> Any:
    """The first document of a YAML file with all its scalars as texts. Tags are ignored; references are refused."""
    yaml = optional.require("yaml", f"the calibration {path}")
    text = read_text(path, "a calibration file", CALIBRATION_LIMIT_BYTES)
    if text.startswith("%YAML"):  # OpenCV writes %YAML:1.0, which is no YAML
        text = text.partition("\n")[2]
    try:
        return _first_document(yaml, yaml.parse(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)))
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is no YAML that can be read ({reason}); write the calibration again") from error


def _first_document(yaml: Any, events: Iterable[Any]) -> Any:
    """The value of the events of YAML up to the end of its first document: texts, lists and dictionaries. YAMLError for
    references, keys that are no texts, and more than MOST_YAML_NODES values."""
    root: list[Any] = []
    opened: list[Any] = [root]  # the lists and dictionaries that are not closed yet
    keys: list[str | None] = [None]  # of each of them, the key whose value comes next
    for count, event in enumerate(events):
        if isinstance(event, yaml.DocumentEndEvent):
            break
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            opened.pop()
            keys.pop()
            continue
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("references are not read")
        if not isinstance(event, yaml.NodeEvent):
            continue
        if count > MOST_YAML_NODES:
            raise yaml.YAMLError(f"it has more than {MOST_YAML_NODES} values")
        value = event.value if isinstance(event, yaml.ScalarEvent) else {}
        if isinstance(event, yaml.SequenceStartEvent):
            value = []
        into = opened[-1]
        if isinstance(into, list):
            into.append(value)
        elif keys[-1] is not None:
            into[keys[-1]], keys[-1] = value, None
        elif isinstance(value, str):
            keys[-1] = value
        else:
            raise yaml.YAMLError("a key is a list or a mapping")
        if not isinstance(value, str):
            opened.append(value)
            keys.append(None)
    return root[0] if root else None


def _read_xml(path: Path) -> Any:
    """An XML document as dictionaries of texts, as `_read_yaml`. Document types, and so entities, are refused."""
    from xml.etree import ElementTree

    text = read_text(path, "a calibration file", CALIBRATION_LIMIT_BYTES)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path} has a document type, which is not read; write the calibration again by OpenCV")
    try:
        root = ElementTree.fromstring(text.lstrip())
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is no XML that can be read ({error}); write the calibration again") from error
    return _plain_xml(root)


def _plain_xml(element: Any) -> Any:
    """An element with children as a dictionary, two levels deep; else its text."""
    return {
        child.tag: {part.tag: part.text or "" for part in child} if len(child) else child.text or ""
        for child in element
    }
