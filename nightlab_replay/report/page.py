# SPDX-License-Identifier: Apache-2.0
"""Pages that need no other file: templates with their style inside, pictures as data."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from nightlab_core.files import write_atomic

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("nightlab_replay", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template of nightlab_replay/templates and write it, whole or not at all."""
    write_atomic(path, _ENVIRONMENT.get_template(template).render(values))


def jpeg_uri(image_bgr: np.ndarray, quality: int = 80) -> Markup:
    """uint8 (H, W, 3) BGR as a data URI, ready for `src`."""
    return Markup("data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image_bgr, quality)).decode())


def write_jpeg(path: Path, image_bgr: np.ndarray, quality: int = 90) -> None:
    """Write a picture. OSError where OpenCV, which only says no, could not."""
    path.write_bytes(encode_jpeg(image_bgr, quality))


def encode_jpeg(image_bgr: np.ndarray, quality: int) -> bytes:
    """The bytes of a JPEG file of uint8 (H, W, 3) BGR."""
    written, data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise ValueError(f"cannot encode {image_bgr.dtype} {image_bgr.shape} as JPEG; expected uint8 (H, W, 3)")
    return data.tobytes()


def css_colour(rgb: tuple[int, int, int]) -> str:
    """As CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a number of per cent, a dash for what does not exist."""
    return "—" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None, digits: int = 1) -> str:
    """A difference of shares in points, with its sign."""
    return "—" if value is None else f"{100 * value:+.{digits}f}".replace("-", "−")


_ENVIRONMENT.filters.update(percent=percent, points=points, css_colour=css_colour)
