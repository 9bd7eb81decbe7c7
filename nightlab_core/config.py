# SPDX-License-Identifier: Apache-2.0
"""Strict typed settings.

An unknown key, or a text in place of a number is an error at every depth: a setting must not be ignored silently.
"""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from nightlab_core.yaml_files import ConfigError, read_yaml, shown


class Settings(BaseModel):
    """Base of every settings class: strict types, frozen, no unknown keys, no NaN.

    To change a field, use `replace(settings, key=value)` of this module: `model_copy` skips validation.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


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
        return cls.model_validate_json(json.dumps(data, default=_iso_date))
    except ValidationError as error:
        lines = [_explain(detail, cls) for detail in error.errors()]
        raise ConfigError(f"{path}: " + "\n".join(lines)) from error
    except (TypeError, UnicodeError) as error:
        raise ConfigError(f"{path}: {error}; expected keys of text, and texts, numbers, lists and mappings") from error


def _iso_date(value: Any) -> str:
    """Return a date of YAML as text, for JSON."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"received {shown(value)}")


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
    return f"key {where!r}: received {shown(detail['input'])}; {detail['msg']}"


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
