# SPDX-License-Identifier: Apache-2.0
"""Write HTML pages that need no other file: their style is inside, and pictures are data URIs."""

from __future__ import annotations

import base64
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from nightlab_core.files import write_atomic
from nightlab_replay.figures.statistics import percent, points


def write_page(path: Path, template: str, *, package: str = "nightlab_replay", **values: Any) -> None:
    """Fill a template and write the page atomically.

    `template` is a file in the folder `templates` of `package`. It may extend base.html.j2 of nightlab_replay.
    """
    write_atomic(path, _environment(package).get_template(template).render(values))


@lru_cache
def _environment(package: str) -> jinja2.Environment:
    packages = dict.fromkeys([package, "nightlab_replay"])
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, "templates") for name in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, css_colour=css_colour)
    return environment


def jpeg_uri(image_bgr: np.ndarray, quality: int = 80) -> Markup:
    """Encode a picture, uint8 (H, W, 3) BGR, as a data URI for `src`."""
    return Markup("data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image_bgr, quality)).decode())


def write_jpeg(path: Path, image_bgr: np.ndarray, quality: int = 90) -> None:
    """Write a picture, uint8 (H, W, 3) BGR. Raises OSError, which cv2.imwrite does not."""
    write_atomic(path, encode_jpeg(image_bgr, quality))


def encode_jpeg(image_bgr: np.ndarray, quality: int) -> bytes:
    """Encode a picture, uint8 (H, W, 3) BGR, as JPEG. Raises ValueError for any other array."""
    written, data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise ValueError(f"cannot encode {image_bgr.dtype} {image_bgr.shape} as JPEG; expected uint8 (H, W, 3)")
    return data.tobytes()


def css_colour(rgb: tuple[int, int, int]) -> str:
    """Format a colour for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
