"""The colours of bands: words in their names, wavelengths in their metadata, numbers of known sensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Names of STAC's eo extension by wavelength, nm: from, to, and the one that is taken first.
WAVELENGTHS_NM = {
    "coastal": (400, 447, 443), "blue": (447, 520, 485), "green": (520, 597, 560), "yellow": (597, 622, 608),
    "red": (622, 690, 660), "rededge": (690, 755, 717), "nir": (755, 930, 842), "nir09": (930, 1000, 945),
    "swir16": (1550, 1750, 1610), "swir22": (2080, 2350, 2200),
}  # fmt: skip
WORDS = {
    "coastal": "coastal", "aerosol": "coastal", "blue": "blue", "bleu": "blue", "blau": "blue",
    "azul": "blue",
    "green": "green", "vert": "green", "verde": "green", "gruen": "green", "grün": "green",
    "yellow": "yellow", "red": "red", "rouge": "red", "rot": "red", "rojo": "red", "vermelho": "red",
    "rosso": "red", "rededge": "rededge", "nir": "nir", "nir1": "nir", "nir08": "nir", "nir2": "nir09",
    "nir09": "nir09", "swir": "swir16", "swir1": "swir16", "swir2": "swir22", "swir16": "swir16",
    "swir22": "swir22", "thermal": "thermal", "tir": "thermal", "lwir": "thermal", "pan": "pan",
    "panchromatic": "pan", "gray": "grey", "grey": "grey", "greeni": "green i",
}  # fmt: skip
LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir"}
JOINED_WORDS = {
    r"red[\s_-]*edge": "rededge",
    r"short[\s_-]*wave[\s_-]*infra[\s_-]*red": "swir",
    r"(thermal|long[\s_-]*wave)[\s_-]*infra[\s_-]*red": "thermal",
    r"(near[\s_-]*)?infra[\s_-]*red": "nir",
    r"coastal[\s_-]*(blue|aerosol)|(ultra|deep)[\s_-]*blue": "coastal",
    r"green[\s_-]*i\b": "greeni",
    r"\b(nir|swir)[\s_-]+(\d)": r"\1\2",
}
NO_IMAGE = {
    "qa",
    "mask",
    "quality",
    "std",
    "stddev",
    "error",
    "uncertainty",
    "ratio",
    "index",
    "ndvi",
    "angle",
}
SENTINEL_2 = {
    "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "rededge", "6": "rededge", "7": "rededge",
    "8": "nir", "8A": "nir", "9": "nir09", "11": "swir16", "12": "swir22",
}  # fmt: skip
LANDSAT_8 = {
    "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "nir", "6": "swir16", "7": "swir22",
    "8": "pan",
}  # fmt: skip
LANDSAT_7 = {"1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir16", "7": "swir22", "8": "pan"}
MODIS = {"1": "red", "2": "nir", "3": "blue", "4": "green", "6": "swir16", "7": "swir22"}
WORD = re.compile(r"[^\W\d_]+\d*")
NUMBER = re.compile(r"(?:^|[^A-Za-z0-9])[Bb](\d{1,2})(A?)(?![A-Za-z0-9])")
WAVELENGTH = re.compile(r"(?:(\d*\.?\d+)\s*[-–]\s*)?(\d*\.?\d+)\s*(nm|nanom|um|µm|μm|microm|micron)")


class BandName(NamedTuple):
    """A band's colour as STAC's eo extension names it, "" if unknown; `exact` if that is its whole name."""

    colour: str = ""
    exact: bool = False
    wavelength_nm: float | None = None

    @property
    def offset_nm(self) -> float:
        """Distance from the wavelength that is typical of the colour."""
        if self.wavelength_nm is None or self.colour not in WAVELENGTHS_NM:
            return 0.0
        return abs(self.wavelength_nm - WAVELENGTHS_NM[self.colour][2])


def colour_of(text: str) -> str:
    """Return the one colour that a name speaks of; "" for none or several."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold().strip()
    if text in LETTERS:
        return LETTERS[text]
    for pattern, word in JOINED_WORDS.items():
        text = re.sub(pattern, word, text)
    words = {word if word in WORDS else word.rstrip("0123456789") for word in WORD.findall(text)}
    colours = {WORDS[word] for word in words if word in WORDS}
    return colours.pop() if len(colours) == 1 and not words & NO_IMAGE else ""


def name_of(description: str, tags: Mapping[str, str]) -> BandName:
    """Return a band's colour by its metadata, its description or its wavelength."""
    wavelength = _wavelength_nm(description, tags)
    for key in ("eo:common_name", "common_name", "STAC_COMMON_NAME"):
        if colour := colour_of(tags.get(key, "")):
            return BandName(colour, True, wavelength)
    texts = [description, *(tags.get(key, "") for key in ("BandName", "BAND_NAME", "long_name"))]
    for text in texts:
        if colour := colour_of(text):
            return BandName(colour, text.strip().casefold() in WORDS | LETTERS, wavelength)
    if wavelength is not None:
        for colour, (low, high, _) in WAVELENGTHS_NM.items():
            if low <= wavelength < high:
                return BandName(colour, False, wavelength)
    return BandName("", False, wavelength)


def stac_names(text: str, count: int) -> list[str]:
    """Return the names in a tag `eo:bands` (JSON); [] if it does not describe all bands."""
    try:
        bands = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(bands, list) or len(bands) != count or not all(isinstance(b, dict) for b in bands):
        return []
    return [str(band.get("eo:common_name") or band.get("common_name") or band.get("name")) for band in bands]


def _wavelength_nm(description: str, tags: Mapping[str, str]) -> float | None:
    units = " ".join(value for key, value in tags.items() if "wavelength" in key.casefold() and "unit" in key)
    for key, value in tags.items():
        key = key.casefold()
        if "wavelength" in key and not any(word in key for word in ("unit", "width", "min", "max", "fwhm")):
            numbers = re.findall(r"\d*\.?\d+", value)
            if numbers:
                return _in_nm(float(numbers[0]), f"{value} {units} {key.rpartition('_')[2]}".casefold())
    if match := WAVELENGTH.search(description.casefold()):
        low, high, unit = match.groups()
        return _in_nm((float(low or high) + float(high)) / 2, unit)
    return None


def _in_nm(value: float, unit: str) -> float | None:
    """Convert a wavelength; without a unit numbers below 20 are micrometres."""
    if re.search(r"\b(um|µm|μm)\b|micro", unit) or (value < 20 and not re.search(r"\bnm\b|nano", unit)):
        value *= 1000
    return value if math.isfinite(value) else None


def sensor_names(descriptions: Sequence[Any]) -> tuple[list[str], str]:
    """Return colours by numbers as B04 or SR_B4, and the sensor if it is a guess.

    Numbers that only count a few bands from B1 on say nothing.
    """
    texts = [str(text or "") for text in descriptions]
    matches = [NUMBER.search(text) for text in texts]
    numbers = [match[1].lstrip("0") + match[2].upper() if match else "" for match in matches]
    known = [number for number in numbers if number]
    if any("sur_refl_b" in text for text in texts):
        known = [re.sub(r".*sur_refl_b0?(\d).*", r"\1", text) for text in texts]
        return [MODIS.get(number, "") for number in known], ""
    if not known or (len(known) <= 4 and known == [str(1 + index) for index in range(len(known))]):
        return ["" for _ in texts], ""
    padded = any(match is not None and match[1].startswith("0") for match in matches)
    landsat = any(re.search(r"SR_B|^L[COTE]0[4-9]", text) for text in texts)
    guess = ""
    if "8A" in known or "12" in known or (padded and "8" in known):
        table = SENTINEL_2
    elif "4" not in known or (landsat and "1" in known and "6" not in known and "7" in known):
        table = LANDSAT_7
    elif padded or landsat or "10" in known:
        table = LANDSAT_8
    elif "8" in known:
        table, guess = SENTINEL_2, "Sentinel-2" if "5" in known else ""
    else:
        table, guess = LANDSAT_8, "Landsat 8" if "1" in known else ""
    return [table.get(number, "") for number in numbers], guess
