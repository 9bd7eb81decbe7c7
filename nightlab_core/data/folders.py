# SPDX-License-Identifier: Apache-2.0
"""Sort the names in a folder as people number them, and say what a folder holds."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

_MOST_NAMES = 3


def natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts frame2 before frame10, and equal numbers by name."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)], path.name


def visible(folder: Path) -> list[Path]:
    """Return a folder's entries in natural order, without hidden files, which other systems leave beside images."""
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=natural_key)


def describe_folder(folder: Path, left_out: tuple[str, ...] = ()) -> str:
    """Return what a folder holds in words, with numbers and the first names, but for files with these suffixes."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in visible(folder):
        suffix = path.suffix.lower()
        if path.is_dir():
            kinds["folders"].append(path.name)
        elif suffix not in left_out:
            kinds[f"files ending in {suffix}" if suffix else "files without an ending"].append(path.name)
    return "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items()) or "nothing"


def _first(names: list[str]) -> str:
    return ", ".join([*names[:_MOST_NAMES], *(["..."] if len(names) > _MOST_NAMES else [])])
