# SPDX-License-Identifier: Apache-2.0
"""Load recipes: settings files that may extend others.

    extends: [image.yaml, night_only.yaml]  # beside this file; a later one overrides an earlier one
    model: {relam: null}                    # this file overrides them all
    start_from: runs/{folder}/deform/checkpoint.pt  # {folder}: the name of the folder that holds this file

Mappings are merged key by key, anything else is replaced. `{folder}` in a file that is extended means the folder of
the recipe that is loaded, so that a folder of recipes which extend those of another writes and reads its own files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from nightlab_core.config import checked
from nightlab_core.yaml_files import ConfigError, read_yaml

T = TypeVar("T", bound=BaseModel)


def load_recipe(path: str | Path, cls: type[T]) -> T:
    """Read the recipe in `path`, with what it extends, into `cls`. Raises ConfigError, or FileNotFoundError."""
    return checked(read_recipe(path), cls, path)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the whole mapping of a recipe, not yet validated. Raises ConfigError, or FileNotFoundError."""
    return _in_folder(_merged(Path(path), ()), Path(path).resolve().parent.name)


def _merged(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """Merge a file over those that it extends. `extending`: the files that led here."""
    if path.resolve() in extending:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(p.name for p in extending)}")
    own = read_yaml(path)
    bases = own.pop("extends", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: key 'extends': received {bases!r}, expected the name of a file, or a list of them")
    whole: dict[str, Any] = {}
    for base in bases:
        if not (path.parent / base).is_file():
            raise ConfigError(f"{path}: key 'extends': there is no file {path.parent / base}")
        whole = _over(whole, _merged(path.parent / base, (*extending, path.resolve())))
    return _over(whole, own)


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: _over(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in own.items()
    }
    return base | both


def _in_folder(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, list):
        return [_in_folder(v, folder) for v in value]
    if isinstance(value, dict):
        return {_in_folder(k, folder): _in_folder(v, folder) for k, v in value.items()}
    return value
