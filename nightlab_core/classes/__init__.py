# SPDX-License-Identifier: Apache-2.0
"""Class sets as data: the shipped YAML files in this folder, and the one loader of these and of a user's own.

    classes: {road: [128, 64, 128], vehicle: [0, 0, 142]}    # name: RGB colour; ids in this order from 0
    to: {cityscapes19: {vehicle: car}}                       # this set's class: the other set's class
    from: {cityscapes19: {car: vehicle, truck: vehicle, sky: null}}

A mapping's value is a class, null for unlabelled, or a list of classes for an ambiguous label: training then accepts
any class of the list, and all else takes the first. Classes that a mapping does not list correspond by name. Another
set is named by a shipped set's key or by the file name of a YAML file in the same folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nightlab_core.config import Settings, checked
from nightlab_core.labels import IGNORE_ID, MAX_CLASSES, ClassMapping, ClassSet, ColorRGB
from nightlab_core.yaml_files import ConfigError, read_yaml

#: The class set where none is named.
DEFAULT = "cityscapes19"
_FOLDER = Path(__file__).parent
_Target = str | tuple[str, ...] | None


class _ClassFile(Settings):
    """A class set's YAML file."""

    classes: dict[str, ColorRGB] = Field(min_length=1, max_length=MAX_CLASSES)
    to: dict[str, dict[str, _Target]] = Field(default_factory=dict)
    from_: dict[str, dict[str, _Target]] = Field(default_factory=dict, alias="from")
    unlabelled_ids: tuple[Annotated[int, Field(ge=0, le=IGNORE_ID)], ...] = ()
    label_ids: dict[str, Annotated[int, Field(ge=0, lt=IGNORE_ID)]] = Field(default_factory=dict)
    folders: tuple[str, ...] = ()


def shipped_keys() -> tuple[str, ...]:
    """Return the keys of the class sets in this folder, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_class_set(reference: str | Path) -> ClassSet:
    """Load a class set by a shipped set's key or by the path of a YAML file.

    The same reference gives the same object. Raises ConfigError, which names file, key, what was received and what was
    expected.
    """
    if str(reference) in shipped_keys():
        return _load(_FOLDER / f"{reference}.yaml")
    path = Path(reference)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"class set {str(reference)!r} is not known; expected one of {', '.join(shipped_keys())}, or a path that"
            " ends in .yaml"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected the YAML file of a class set")
    if path.stem in shipped_keys() and path.resolve().parent != _FOLDER.resolve():
        raise ConfigError(f"{path}: {path.stem!r} is the key of a shipped class set; give the file another name")
    return _load(path.resolve())


def shipped_class_set(names: Iterable[str], colors_rgb: Iterable[tuple[int, int, int]]) -> ClassSet | None:
    """Return the shipped class set with these names and colours, or None."""
    wanted = tuple(names), tuple(colors_rgb)
    return next((s for s in map(load_class_set, shipped_keys()) if (s.names, s.colors_rgb) == wanted), None)


def class_set_of_folder(path: Path) -> ClassSet | None:
    """Return the shipped class set that claims a folder of this path by its name, or None."""
    parts = {part.lower() for part in path.resolve().parts}
    return next((s for s in map(load_class_set, shipped_keys()) if parts.intersection(s.folders)), None)


def _loaded(value: Any) -> Any:
    if isinstance(value, str | Path):
        return load_class_set(value)
    if isinstance(value, dict):  # as `model_dump` writes it, with lists for tuples
        return ClassSet.model_validate(value, strict=False)
    return value


#: A settings field that holds a class set and also accepts a key or path of one.
ClassSetField = Annotated[ClassSet, BeforeValidator(_loaded)]


@lru_cache
def _load(path: Path) -> ClassSet:
    file = _read(path)
    names = tuple(file.classes)
    for position, name in enumerate(names):
        color = file.classes[name]
        if color == (0, 0, 0):
            raise ConfigError(
                f"{path}: key 'classes.{name}': received black, which is unlabelled; choose another colour"
            )
        if color in (same := list(file.classes.values())[:position]):
            other = names[same.index(color)]
            raise ConfigError(f"{path}: key 'classes.{name}': received the colour of {other!r}; choose another colour")
    for name in file.label_ids:
        _check_name(path, f"label_ids.{name}", name, names)
    if len(set(file.label_ids.values())) < len(file.label_ids):
        raise ConfigError(f"{path}: key 'label_ids': received an id of two classes; expected distinct ids")
    if own := sorted(set(file.unlabelled_ids) & set(range(len(names)))):
        raise ConfigError(f"{path}: key 'unlabelled_ids': received {own[0]}, the id of class {names[own[0]]!r}")
    return ClassSet(
        key=path.stem,
        names=names,
        colors_rgb=tuple(file.classes.values()),
        mappings_to=dict(_mappings(path, "to", file.to, names)),
        mappings_from=dict(_mappings(path, "from", file.from_, names)),
        unlabelled_ids=file.unlabelled_ids,
        label_ids=file.label_ids,
        folders=file.folders,
    )


def _read(path: Path) -> _ClassFile:
    data = read_yaml(path)
    for key in ("classes", "to", "from"):
        for name in _names_in(data.get(key)):
            if not isinstance(name, str) or not name.strip():
                raise ConfigError(
                    f"{path}: key {key!r}: received {name!r} as a name; expected text: write it in quotes"
                )
    return checked(data, _ClassFile, path)


def _names_in(value: Any) -> Iterator[Any]:
    """Yield the keys of a mapping and of the mappings in it."""
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _names_in(inner)


def _mappings(
    path: Path, key: str, declared: dict[str, dict[str, _Target]], own: tuple[str, ...]
) -> Iterator[tuple[str, ClassMapping]]:
    """Yield the other set's key and the checked mapping, for each mapping of a file."""
    for reference, targets in declared.items():
        other_key, other = _referenced(path, f"{key}.{reference}", reference)
        sources, allowed = (own, other) if key == "to" else (other, own)
        mapping: ClassMapping = {}
        for name, target in targets.items():
            where = f"{key}.{reference}.{name}"
            _check_name(path, where, name, sources)
            chosen = () if target is None else (target,) if isinstance(target, str) else target
            for each in chosen:
                _check_name(path, where, each, allowed)
            if len(set(chosen)) < len(chosen):
                raise ConfigError(f"{path}: key {where!r}: received {list(chosen)}; expected each class once")
            mapping[name] = chosen
        if missing := [name for name in sources if name not in mapping and name not in allowed]:
            raise ConfigError(
                f"{path}: key '{key}.{reference}': received nothing for {missing[0]!r}, which is no class of the other"
                f" set; add {missing[0]!r} with a class of {', '.join(allowed)}, or null for unlabelled"
            )
        yield other_key, mapping


def _referenced(path: Path, where: str, reference: str) -> tuple[str, tuple[str, ...]]:
    """Return key and class names of the set that a mapping names; its own mappings are not read."""
    if reference in shipped_keys():
        other = _FOLDER / f"{reference}.yaml"
    else:
        other = path.parent / reference
        if other.suffix not in (".yaml", ".yml") or not other.is_file():
            raise ConfigError(
                f"{path}: key {where!r}: received the class set {reference!r}; expected one of"
                f" {', '.join(shipped_keys())}, or the name of a YAML file in {path.parent}"
            )
    return other.stem, tuple(_read(other).classes)


def _check_name(path: Path, where: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ConfigError(f"{path}: key {where!r}: received the class {name!r}; expected one of {', '.join(names)}")
