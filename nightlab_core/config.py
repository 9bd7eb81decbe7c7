# SPDX-License-Identifier: Apache-2.0
"""Strict typed settings, and YAML files read into them.

An unknown key, a key written twice, or a text in place of a number is an error at every depth: a setting must not be
ignored silently.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """Base of every settings class: strict types, frozen, no unknown keys, no NaN.

    To change a field, use `replace(settings, key=value)` of this module: `model_copy` skips validation.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class ConfigError(ValueError):
    """A settings file that cannot be used: the message names file, key, what was received and what is expected."""


T = TypeVar("T", bound=BaseModel)


def replace(settings: T, **changes: Any) -> T:
    """Return a validated copy of `settings` with some fields changed. Raises pydantic's ValidationError."""
    return type(settings).model_validate({**{k: getattr(settings, k) for k in type(settings).model_fields}, **changes})


def load_yaml(path: str | Path, cls: type[T]) -> T:
    """Read the YAML mapping in `path` into `cls`. Raises ConfigError, or FileNotFoundError."""
    return checked(read_yaml(path), cls, path)


def checked(data: dict[str, Any], cls: type[T], path: str | Path) -> T:
    """Validate a mapping, read from `path`, as `cls`. Raises ConfigError that names `path`."""
    try:
        # Through JSON, because in strict mode a YAML list is otherwise no tuple.
        return cls.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        lines = [_explain(detail, cls) for detail in error.errors()]
        raise ConfigError(f"{path}: " + "\n".join(lines)) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file, without validation. Raises ConfigError, or FileNotFoundError."""
    with Path(path).open(encoding="utf-8") as file:
        try:
            data = yaml.load(file, Loader=_Loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: received {_shown(data)}, expected a mapping of keys to values")
    return data


class _Loader(yaml.SafeLoader):
    """Load YAML's safe types; refuse keys written twice, and read 1e-4 as a number, unlike PyYAML."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _explain(detail: ErrorDetails, cls: type[BaseModel]) -> str:
    *parents, key = detail["loc"] or ("the whole file",)
    where = ".".join(map(str, [*parents, key]))
    if detail["type"] == "extra_forbidden":
        known = _keys_at(cls, parents)
        close = difflib.get_close_matches(str(key), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(known)}"
        return f"key {where!r}: received an unknown key; {hint}"
    if detail["type"] == "missing":
        return f"key {where!r}: received nothing; add this key"
    return f"key {where!r}: received {_shown(detail['input'])}; {detail['msg']}"


def _keys_at(cls: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Return the keys of the settings class at a place in the tree."""
    for step in location:
        field = cls.model_fields.get(str(step))
        if field is not None:  # the index of a list or the key of a dict leaves the class as it is
            cls = next(_models_in(field.annotation), cls)
    return [field.alias or name for name, field in cls.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
