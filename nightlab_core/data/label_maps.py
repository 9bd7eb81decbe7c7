# SPDX-License-Identifier: Apache-2.0
"""Read label maps from files and messages, and check them against their image and class set.

A label map's file is a PNG with one class id per pixel: grey of 1, 2, 4 or 8 bits, or with a palette. See `palette_ids`
for the rule for palettes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nightlab_core.classes import shipped_keys
from nightlab_core.data.image_files import decode_image, read_file
from nightlab_core.data.image_header import JPEG, PNG, ImageError
from nightlab_core.data.images import mono8_pixels
from nightlab_core.data.png import png_chunk, png_chunks
from nightlab_core.labels import IGNORE_ID, ClassSet

_LABEL_ENCODINGS = ("mono8", "8UC1")
_GREY, _PALETTE = 0, 3  #: colour types in a PNG's header
_NEAR = 2  #: difference in each of red, green and blue up to which two colours are taken as the same
_SIZE, _BITS, _TYPE = slice(0, 8), 8, 9  #: where they are in it


def read_label_map(path: Path, classes: ClassSet | None, doubts: list[str] | None = None) -> np.ndarray:
    """Read the ids in a label map's file, as they are: uint8 (H, W). Raises OSError, and ValueError with the path.

    `classes` is the class set whose colours a palette may have; None if the ids are in another numbering than its own.
    What is doubtful about a palette is added to `doubts`.
    """
    try:
        labels = decode_label_image(read_file(path), classes, doubts)
    except ImageError as error:
        raise ValueError(f"labels {path} cannot be read: {error}") from error
    _check_type(labels, str(path))
    return labels


def decode_label_image(data: bytes, classes: ClassSet | None, doubts: list[str] | None = None) -> np.ndarray:
    """Decode the bytes of a label map's PNG, uint8 (H, W); for `classes` and `doubts` see `read_label_map`.

    Returns other shapes and types as they are, see `checked_labels`. Raises ImageError.
    """
    if data.startswith(JPEG):
        raise ImageError("received a JPEG file; expected a PNG file, as JPEG changes class ids")
    if not data.startswith(PNG):
        raise ImageError(
            f"received {len(data)} bytes beginning with {data[:8].hex() or 'nothing'}; expected a PNG file, as other "
            "formats may change class ids"
        )
    chunks = list(png_chunks(data))
    header = next((body for kind, body in chunks if kind == b"IHDR"), b"")
    if len(header) != 13:
        raise ImageError(f"received {len(data)} bytes of PNG without a header: it is corrupt")
    bits, colour_type = header[_BITS], header[_TYPE]
    if colour_type not in (_GREY, _PALETTE) or bits > 8:
        return decode_image(data, cv2.IMREAD_UNCHANGED)
    # OpenCV turns indices into colours, and stretches few bits to 8: let it see a grey image and undo the stretching
    grey = header[:_TYPE] + bytes([_GREY]) + header[_TYPE + 1 :]
    kept = [(b"IHDR", grey), *((kind, body) for kind, body in chunks if kind == b"IDAT"), (b"IEND", b"")]
    stored = decode_image(PNG + b"".join(png_chunk(*chunk) for chunk in kept), cv2.IMREAD_UNCHANGED)
    stored //= 255 // ((1 << bits) - 1)
    if colour_type == _GREY:
        return stored
    palette = next((body for kind, body in chunks if kind == b"PLTE"), b"")
    colours = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
    ids = palette_ids(stored, colours, classes)
    if doubts is not None and classes is not None:
        doubts.extend(_palette_doubts(stored, ids, colours, classes))
    return ids


def palette_ids(indices: np.ndarray, palette_rgb: np.ndarray, classes: ClassSet | None) -> np.ndarray:
    """Return the class ids, uint8 (H, W), of an image with a palette, uint8 (N, 3) RGB.

    The first rule that fits counts:

    1. The palette is that of PASCAL VOC, 16 colours or more: the indices are the ids.
    2. All colours in the image are the class set's or black, and at least one is a class's colour other than black:
       each stands for its class. Black is unlabelled, unless it is a class's colour.
    3. All of the image is black, and the palette has several of the class set's colours: all of it is unlabelled, or
       of the class whose colour is black.
    4. All colours in the image are grey: the grey values are the ids.
    5. All colours in the image differ by at most 2 of 255 in red, green and blue from just one colour of rule
       2: as rule 2.
    6. None of the colours in the image is another class's than the index says: the indices are the ids.

    Raises ImageError where none fits.
    """
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    if used[-1] >= len(palette_rgb):
        raise ImageError(f"received the palette index {used[-1]}; the palette has {len(palette_rgb)} colours")
    if _is_voc(palette_rgb):
        return indices
    by_colour = _ids_by_colour(classes)
    known = {int(index): by_colour.get(tuple(map(int, palette_rgb[index]))) for index in used}
    is_class = [tuple(map(int, colour)) in by_colour and bool(colour.any()) for colour in palette_rgb]
    table = np.arange(256, dtype=np.uint8)
    if all(found is not None for found in known.values()) and any(is_class[i] for i in used):
        table[list(known)] = [found for found in known.values() if found is not None]
        return table[indices]
    colours = palette_rgb[used]
    if (colours == colours[:, :1]).all() and not (sum(is_class) > 1 and (colours == 0).all()):
        table[used] = colours[:, 0]
        return table[indices]
    if (colours == 0).all() and by_colour.get((0, 0, 0)) is not None:  # unlabelled alone, in a palette of classes
        return np.full_like(indices, by_colour[(0, 0, 0)])
    near = [i for i in (_near_class(colour, by_colour) for colour in colours) if i is not None]
    if len(near) == len(used) and (colours > _NEAR).any():
        table[used] = near
        return table[indices]
    wrong = [index for index in known if is_class[index] and known[index] != index]
    if wrong and classes is not None:
        raise ImageError(
            f"received a palette whose index {wrong[0]} has the colour of {classes.names[known[wrong[0]] or 0]!r} of "
            f"{classes.key} beside colours of no class; expected class ids in grey, or the class set's colours alone"
        )
    return indices


def _palette_doubts(indices: np.ndarray, ids: np.ndarray, palette_rgb: np.ndarray, classes: ClassSet) -> Iterator[str]:
    """Yield what is doubtful about indices, uint8 (H, W), that `palette_ids` took as ids."""
    if _is_voc(palette_rgb):
        if 0 not in classes.unlabelled_ids and classes.colors_rgb != tuple(map(tuple, _voc_palette()[: len(classes)])):
            yield (
                f"the palette of PASCAL VOC, whose index 0 is the background; it is taken as {classes.names[0]!r}: "
                "check that ids are not counted from 1"
            )
        return
    if not np.array_equal(indices, ids):
        return
    used = [i for i in np.unique(indices).tolist() if i < len(classes) and i not in classes.unlabelled_ids]
    expected = np.array(classes.colors_rgb)[used]
    colours = palette_rgb[used].astype(int)
    is_known = (np.abs(colours - expected) <= _NEAR).all(axis=1) | (colours == np.array(used)[:, None]).all(axis=1)
    if not is_known.all():
        yield f"a palette of colours that {classes.key} does not have; the indices are taken as ids: check the ids"


def label_map(msg: Any, classes: ClassSet, doubts: list[str] | None = None) -> np.ndarray:
    """Return the class ids in a mono8 Image or a PNG in a CompressedImage, uint8 (H, W) if it is a label map.

    For `doubts` see `read_label_map`. Raises ImageError. `checked_labels` checks shape, type and ids.
    """
    if hasattr(msg, "format"):
        try:
            return decode_label_image(bytes(msg.data), classes, doubts)
        except ImageError as error:
            raise ImageError(f"the compressed label map of format {msg.format!r} cannot be decoded: {error}") from error
    if msg.encoding not in _LABEL_ENCODINGS:
        raise ImageError(f"the label map has the encoding {msg.encoding!r}; expected mono8, class ids")
    return mono8_pixels(msg)


def checked_labels(labels: np.ndarray | None, image_bgr: np.ndarray, classes: ClassSet, name: str) -> np.ndarray | None:
    """Return a label map, uint8 (H, W), with the class set's `unlabelled_ids` replaced by 255; None for None.

    Raises ValueError, with `name`, if it does not fit its image or holds ids that the class set does not have.
    """
    if labels is None:
        return None
    _check_type(labels, name)
    if labels.shape != image_bgr.shape[:2]:
        raise ValueError(
            f"labels {name} are {labels.shape}, their image is {image_bgr.shape[:2]}; expected the same (H, W)"
        )
    for unlabelled in classes.unlabelled_ids:
        labels = np.where(labels == unlabelled, np.uint8(IGNORE_ID), labels)
    # a histogram finds the ids 20 times as fast as np.unique does
    present = np.flatnonzero(cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256]))
    unknown = np.setdiff1d(present, [*range(len(classes)), IGNORE_ID])
    if unknown.size:
        counted = " (are the ids counted from 1?)" if unknown.tolist() == [len(classes)] else ""
        raise ValueError(
            f"labels {name} hold the ids {unknown.tolist()}{counted}; {classes.key} has 0-{len(classes) - 1} and "
            f"{IGNORE_ID}: name the right class set (one of {', '.join(shipped_keys())}, or a YAML file)"
        )
    return labels


def _check_type(labels: np.ndarray, name: str) -> None:
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"labels {name} are {labels.dtype} {labels.shape}; expected class ids, uint8 (H, W), not colours"
        )


def _ids_by_colour(classes: ClassSet | None) -> dict[tuple[int, ...], int]:
    """Return the class id of each colour that one class alone has, and 255 for black if no class has it."""
    if classes is None:
        return {}
    colours = [tuple(colour) for colour in classes.colors_rgb]
    found: dict[tuple[int, ...], int] = {(0, 0, 0): IGNORE_ID} if (0, 0, 0) not in colours else {}
    return found | {colour: i for i, colour in enumerate(colours) if colours.count(colour) == 1}


def _near_class(colour: np.ndarray, by_colour: dict[tuple[int, ...], int]) -> int | None:
    """Return the id of the only colour that differs by at most `_NEAR`; None if there is none, or more than one."""
    near = [i for known, i in by_colour.items() if np.abs(np.array(known) - colour).max() <= _NEAR]
    return near[0] if len(near) == 1 else None


def _is_voc(palette_rgb: np.ndarray) -> bool:
    return len(palette_rgb) >= 16 and np.array_equal(palette_rgb, _voc_palette()[: len(palette_rgb)])


def _voc_palette() -> np.ndarray:
    """Return the palette of PASCAL VOC, uint8 (256, 3) RGB: bits 0, 3 and 6 of the index are the highest of red, ..."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for bit in range(3):
            if channel + 3 * bit < 8:
                palette[:, channel] |= (((index >> (channel + 3 * bit)) & 1) << (7 - bit)).astype(np.uint8)
    return palette
