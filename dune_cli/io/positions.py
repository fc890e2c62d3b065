"""Files with the positions of photos: tables with a line of column names, and OpenDroneMap's geo.txt.

A table is separated by commas, semicolons, tabs, bars or blanks; decimals may have commas where semicolons separate.
Its columns: photo; lat, lon, alt in degrees and metres, or x, y, z in metres; and as far as they are known the standard
deviations sd, or sd_xy and sd_z. Other usual names of these columns are read, also with their unit in brackets, others
ignored. The names may be in a comment, which Metashape writes, with the coordinate system in another.
geo.txt: a coordinate system on the first line, then photo, x, y, z on each line (OpenDroneMap, "Image Geolocation
Files"); for a system in degrees x is the longitude.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.photo_names import matching_keys
from dune_cli.io.safe_read import LINES_LIMIT_BYTES, read_text, shown

FORMS = (
    "a table with the columns photo, lat, lon, alt or photo, x, y, z (and sd, or sd_xy and sd_z, in metres), or "
    "OpenDroneMap's geo.txt"
)
COLUMNS = {
    "photo": (
        "photo",
        "image",
        "name",
        "file",
        "filename",
        "image_name",
        "imagename",
        "photo_name",
        "label",
        "sourcefile",
    ),
    "lat": ("lat", "latitude", "gpslatitude", "latitude_deg", "y/latitude"),
    "lon": ("lon", "lng", "long", "longitude", "gpslongitude", "longitude_deg", "x/longitude"),
    "alt": (
        *("alt", "altitude", "height", "elevation", "ele", "gpsaltitude", "altitude_m", "height_m", "z/altitude"),
        *("altitude_wgs84", "altitude_amsl"),  # senseFly's geoinfo
    ),
    "x": ("x", "easting", "east", "e", "x_m", "x/easting", "x/east"),
    "y": ("y", "northing", "north", "n", "y_m", "y/northing", "y/north"),
    "z": ("z", "z_m", "up", "alt", "altitude", "height", "elevation", "ele", "z/altitude"),
    "sd": ("sd", "accuracy", "sigma", "std", "sd_m"),
    "sd_xy": ("sd_xy", "accuracy_xy", "horizontal_accuracy", "accuracy_horizontal", "horz_acc", "sd_h"),
    "sd_z": ("sd_z", "accuracy_z", "vertical_accuracy", "accuracy_vertical", "vert_acc", "sd_v"),
}
CRS_LINE = re.compile(r"\s*(epsg:\d+|\+proj=.*|wgs84|wgs84\s+utm\s+\d{1,2}\s*[ns])\s*$", re.IGNORECASE)
UTM = re.compile(r"wgs84\s+utm\s+(\d+)\s*([ns])", re.IGNORECASE)
NAMED_CRS = re.compile(r"epsg::?(\d+)", re.IGNORECASE)
UNIT = re.compile(r"_*[(\[](?:deg|degrees?|decimal_degrees?|°|m|met(?:er|re)s?)[)\]]$")  # of a column, plain
FARTHEST_M, HIGHEST_M, LARGEST_SD_M = 1e8, 1e7, 1e5
LONGEST_LINE = 100_000
GEO_TXT_WORDS = 9  # photo, x, y, z, yaw, pitch, roll and two standard deviations; others follow


@dataclass(frozen=True)
class GivenPosition:
    """A line of a file: `coordinates`, which are (latitude, longitude, height) in degrees and metres, or (x, y, z) in
    the file's system; height or z is None where the file has none. `sd_m`: standard deviations of (x, y, z), or None.
    """

    coordinates: tuple[float, float, float | None]
    sd_m: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class PositionTable:
    """The positions of a file by its photos' names. `geodetic`: whether they are latitudes and longitudes. `crs`: the
    coordinate system that the file names, None without one."""

    path: Path
    positions: Mapping[str, GivenPosition]
    geodetic: bool
    crs: str | None = None

    def of_photos(self, names: Sequence[str]) -> dict[str, GivenPosition]:
        """The positions of those of `names` (image names or paths) that have one, as poses are found by name. Notes say
        how many are left over on either side; UserError if no name has a position."""
        keys = matching_keys(names, list(self.positions))
        if not keys:
            have = ", ".join(map(shown, list(self.positions)[:3])) + (", ..." if len(self.positions) > 3 else "")
            raise UserError(f"{self.path} has a position for none of the {len(names)} photos; it names {have}")
        twice = len(keys) - len(set(keys.values()))
        if twice:
            raise UserError(f"{self.path}: {twice} photos share another photo's position; name more of their paths")
        if unused := len(self.positions) - len(keys):
            console.note(f"{self.path}: {unused} of its {len(self.positions)} positions belong to none of the photos")
        if missing := [name for name in names if name not in keys]:
            some = ", ".join(Path(name).name for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
            console.note(f"{self.path} has no position for {len(missing)} of {len(names)} photos: {some}")
        return {name: self.positions[key] for name, key in keys.items()}


def read_positions(path: str | Path) -> PositionTable:
    """UserError (with the path and the line) for other files, latitudes and longitudes that are none, numbers that are
    not finite, and photos that are named twice."""
    path = Path(path).expanduser()
    lines = read_text(path, f"a file of positions ({FORMS})", LINES_LIMIT_BYTES).splitlines()
    if any(len(line) > LONGEST_LINE for line in lines):
        raise UserError(f"{path} has lines of more than {LONGEST_LINE} characters; allowed: {FORMS}")
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not rows:
        raise UserError(f"{path} is empty; allowed: {FORMS}")
    if found := CRS_LINE.match(rows[0][1]):
        return _geo_txt(path, _utm_code(found[1].strip()), rows[1:])
    comments = [line.lstrip("#") for line in lines[: rows[0][0] - 1] if line.startswith("#")]
    if comments and not _is_header(rows[0][1]) and _is_header(comments[-1]):
        table = _table(path, [(0, comments[-1]), *rows])
        crs = NAMED_CRS.search(" ".join(comments[:-1]))
        return replace(table, crs=f"EPSG:{crs[1]}" if crs is not None and not table.geodetic else None)
    return _table(path, rows)


def _utm_code(crs: str) -> str:
    found = UTM.fullmatch(crs)
    return crs if found is None else f"EPSG:{(32600 if found[2].lower() == 'n' else 32700) + int(found[1])}"


def _mark_of(header: str) -> str:
    """What separates the columns."""
    counts = {mark: header.count(mark) for mark in ",;\t|"}
    mark = max(counts, key=counts.__getitem__)
    return mark if counts[mark] else " "


def _is_header(line: str) -> bool:
    return _places(_cells(line, _mark_of(line))).keys() >= {"photo"}


def _geo_txt(path: Path, crs: str, rows: Sequence[tuple[int, str]]) -> PositionTable:
    geodetic = crs.lower() in ("epsg:4326", "epsg:4979", "wgs84") or "+proj=longlat" in crs.lower()
    positions: dict[str, GivenPosition] = {}
    for number, line in rows:
        words = line.split()
        where = f"{path}, line {number}"
        if len(words) < 3:
            raise UserError(f"{where}, has {len(words)} words; below a coordinate system each line is photo x y z")
        x, y, *rest = (_number(word, where) for word in words[1:GEO_TXT_WORDS])
        height = rest[0] if rest else None
        across, up = (rest[4] if len(rest) > 4 else None), (rest[5] if len(rest) > 5 else None)
        coordinates = (y, x, height) if geodetic else (x, y, height)
        one = GivenPosition(_checked(coordinates, geodetic, where), _sds(across, up, where))
        _add(positions, words[0], one, where)
    return _complete(path, positions, geodetic, None if geodetic else crs)


def _table(path: Path, rows: Sequence[tuple[int, str]]) -> PositionTable:
    header = rows[0][1]
    mark = _mark_of(header)
    columns = _columns(path, _cells(header, mark))
    geodetic = "lat" in columns
    keys = ("lat", "lon", "alt") if geodetic else ("x", "y", "z")
    positions: dict[str, GivenPosition] = {}
    for number, line in rows[1:]:
        cells, where = _cells(line, mark), f"{path}, line {number}"

        def cell(key: str, cells: Sequence[str] = cells) -> str:
            index = columns.get(key)
            text = "" if index is None or index >= len(cells) else cells[index].strip()
            return text.replace(",", ".") if mark == ";" and key != "photo" else text  # decimal commas

        name = cell("photo")
        if not name:
            raise UserError(f"{where}, names no photo; allowed: {FORMS}")
        if not cell(keys[0]) and not cell(keys[1]):
            continue  # a photo without a fix
        first, second = (_number(cell(key), where) for key in keys[:2])
        third = _number(cell(keys[2]), where) if cell(keys[2]) else None
        across, up = (
            _number(cell(key) or cell("sd"), where) if cell(key) or cell("sd") else None for key in ("sd_xy", "sd_z")
        )
        one = GivenPosition(_checked((first, second, third), geodetic, where), _sds(across, up, where))
        _add(positions, name, one, where)
    return _complete(path, positions, geodetic, None)


def _cells(line: str, mark: str) -> list[str]:
    if mark == " ":
        return line.split()
    return next(csv.reader([line.replace("\0", " ")], delimiter=mark), [])


def _columns(path: Path, names: Sequence[str]) -> dict[str, int]:
    """The place of each known column. UserError without those that are needed."""
    columns = _places(names)
    if "photo" not in columns or not ({"lat", "lon"} <= set(columns) or {"x", "y"} <= set(columns)):
        have = ", ".join(shown(name, 20) for name in names[:6])
        raise UserError(f"{path} has the columns {have}; allowed: {FORMS}")
    if {"lat", "lon"} <= set(columns) and {"x", "y"} <= set(columns):
        raise UserError(f"{path} has both latitudes and x, y; leave one of them out")
    return columns


def _places(names: Sequence[str]) -> dict[str, int]:
    plain = [UNIT.sub("", re.sub(r"[\s\-]+", "_", name.strip().lower())) for name in names]
    places = {key: next((plain.index(n) for n in spellings if n in plain), None) for key, spellings in COLUMNS.items()}
    return {key: place for key, place in places.items() if place is not None}


def _number(text: str, where: str) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}, has {shown(text, 30)} where a number is needed; decimals have a point")
    return value


def _checked(
    coordinates: tuple[float, float, float | None], geodetic: bool, where: str
) -> tuple[float, float, float | None]:
    """UserError for what is no place on earth."""
    first, second, height = coordinates
    if geodetic and not (abs(first) <= 90 and abs(second) <= 180):
        swapped = abs(second) <= 90 and abs(first) <= 180
        cure = "latitude and longitude seem to be swapped" if swapped else "give degrees"
        raise UserError(
            f"{where}, has latitude {first:g} and longitude {second:g}; at most 90 and 180 degrees are allowed: {cure}"
        )
    if not geodetic and max(abs(first), abs(second)) > FARTHEST_M:
        raise UserError(f"{where}, has coordinates beyond {FARTHEST_M:g} m; give x, y, z in metres")
    if height is not None and abs(height) > (HIGHEST_M if geodetic else FARTHEST_M):
        raise UserError(f"{where}, has the height {height:g}; give metres")
    return coordinates


def _sds(across: float | None, up: float | None, where: str) -> tuple[float, float, float] | None:
    across, up = across if across is not None else up, up if up is not None else across
    if across is None or up is None:
        return None
    if not (0 < across <= LARGEST_SD_M and 0 < up <= LARGEST_SD_M):
        raise UserError(f"{where}, has the standard deviations {across:g} and {up:g}; give metres above 0")
    return across, across, up


def _add(positions: dict[str, GivenPosition], name: str, one: GivenPosition, where: str) -> None:
    if name in positions:
        raise UserError(f"{where}, names {shown(name)} for the second time; keep one of its positions")
    positions[name] = one


def _complete(path: Path, positions: dict[str, GivenPosition], geodetic: bool, crs: str | None) -> PositionTable:
    """UserError without a position, and for positions without a height."""
    if not positions:
        raise UserError(f"{path} holds no positions; allowed: {FORMS}")
    without = [name for name, one in positions.items() if one.coordinates[2] is None]
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        raise UserError(f"{path} has no height for {shown(without[0])}{more}; add them as alt or z, in metres")
    return PositionTable(path, positions, geodetic, crs)
