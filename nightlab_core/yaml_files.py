# SPDX-License-Identifier: Apache-2.0
"""The one reader of YAML files. It needs nothing but PyYAML, so that a launch file can use it, too.

A YAML file is data from outside, so that its size, its depth and its aliases are limited. A key written twice is an
error: a setting must not be ignored silently.
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

#: Limits of a YAML file: bytes, levels of nesting, and values once every alias is replaced by what it stands for.
MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_VALUES = 1 << 20, 32, 50_000
#: Most characters of a text, and of a number: Python takes minutes for long ones, or cannot print them.
MAX_YAML_TEXT, MAX_YAML_NUMBER = 20_000, 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class ConfigError(ValueError):
    """A settings file that cannot be used: the message names file, key, what was received and what is expected."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file, without validation. Raises ConfigError, or FileNotFoundError."""
    with Path(path).open("rb") as file:
        content = file.read(MAX_YAML_BYTES + 1)
    if len(content) > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: received more than {MAX_YAML_BYTES} bytes; is this the right file?")
    data = parse_yaml(content, path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: received {shown(data)}, expected a mapping of keys to values")
    return data


def parse_yaml(text: str | bytes, name: str | Path) -> Any:
    """Return the value of a YAML text, of any type. Raises ConfigError, which calls the text `name`."""
    try:
        return yaml.load(text.decode() if isinstance(text, bytes) else text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # also for a date or number that Python refuses
        raise ConfigError(f"{name}: not readable as YAML: {_yaml_fault(error)}") from error


def _yaml_fault(error: Exception) -> str:
    """Return what is wrong with a YAML text, on one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"{getattr(error, 'problem', None)}, in line {mark.line + 1}, column {mark.column + 1}"


def to_yaml(data: dict[str, Any]) -> str:
    """Return a mapping of plain values as YAML that `read_yaml` reads back, in the mapping's order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


class _Loader(yaml.SafeLoader):
    """Load texts, numbers, dates, lists and mappings within the limits of this module.

    Refuses tags and keys written twice, and reads 1e-4 as a number and 1:30 as a text, as YAML 1.2 does, unlike PyYAML.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._composed = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}  # values and levels of a node, aliases replaced

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _refused(f"received the tag {event.tag!r}; remove it", event)
        self._composed += 1
        if self._composed > MAX_YAML_VALUES:
            raise _refused(f"received more than {MAX_YAML_VALUES} values", event)
        if len(getattr(event, "value", "")) > MAX_YAML_TEXT:
            raise _refused(f"received a text of more than {MAX_YAML_TEXT} characters", event)
        self._depth += 1
        if self._depth > MAX_YAML_DEPTH:
            raise _refused(f"received more than {MAX_YAML_DEPTH} levels of nesting", event)
        node = super().compose_node(parent, index)
        assert node is not None
        if node.tag in _NUMBERS and len(node.value) > MAX_YAML_NUMBER:
            raise _refused(f"received a number of more than {MAX_YAML_NUMBER} characters", event)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._extents:
            raise _refused("received an alias inside of its own anchor", event)
        values, levels = self._extents.setdefault(node, self._extent(node))
        if values > MAX_YAML_VALUES or self._depth + levels > MAX_YAML_DEPTH:
            raise _refused(
                f"received more than {MAX_YAML_VALUES} values or {MAX_YAML_DEPTH} levels, with aliases replaced", event
            )
        return node

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        tag = str(super().resolve(kind, value, implicit))
        return self.DEFAULT_SCALAR_TAG if tag in _NUMBERS and ":" in value else tag  # base 60 takes minutes

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = chain.from_iterable(parts)
        extents = [self._extents[part] for part in parts]
        return 1 + sum(values for values, _ in extents), 1 + max((levels for _, levels in extents), default=0)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused("received a list or mapping as a key; expected a text", key_node)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _refused(f"key {key!r} is written twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Write texts so that `_Loader` reads them back as texts, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _refused(reason: str, place: Any) -> yaml.MarkedYAMLError:
    """Return the error for an event or a node of the file."""
    return yaml.MarkedYAMLError(problem=reason, problem_mark=place.start_mark)


def shown(value: Any) -> str:
    """Return a value that was received for an error's text, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
