# SPDX-License-Identifier: Apache-2.0
"""Declare the node's parameters, and check values that are given or set."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from nightlab_core.config import replace
from nightlab_ros.parameters import AT_CONFIGURE, AT_START, NodeSettings, changes, choices, ros_value, value_range

#: Start of the names of parameters with which rclpy sets the quality of service of topics.
QOS_OVERRIDES = "qos_overrides."


class ParameterError(ValueError):
    """A value that is refused. The message is the reason that the caller of the set service gets."""


def change(settings: NodeSettings, values: Mapping[str, Any], configured: bool) -> NodeSettings:
    """Return a validated copy of the settings with other values; names that are no settings are ignored.

    Raises ParameterError that names each parameter, what was received and what is expected. A configured node refuses
    parameters that change at configure only.
    """
    own = {name: _plain(value) for name, value in values.items() if name in NodeSettings.model_fields}
    try:
        changed = replace(settings, **own)
    except ValidationError as error:
        lines = [
            f"{e['loc'][0]}: received {e['input']!r}; {_lower(e['msg'].removeprefix('Value error, '))}"
            for e in error.errors()
        ]
        raise ParameterError("; ".join(lines)) from error
    if configured:
        for name in own:
            marks = NodeSettings.model_fields[name].metadata
            if AT_CONFIGURE in marks and getattr(changed, name) != getattr(settings, name):
                raise ParameterError(f"{name} takes effect at the next configure: deactivate and cleanup first")
    return changed


def declare(node: Any) -> NodeSettings:
    """Declare every parameter on an rclpy node and return its first settings.

    Raises ParameterError that names all wrong values of the file and the command line at once.
    """
    given = {name: parameter.value for name, parameter in node._parameter_overrides.items()}
    wrong = wrong_qos_overrides(given)
    try:
        settings = change(NodeSettings(), given, configured=False)
    except ParameterError as error:
        wrong.insert(0, str(error))
    if wrong:
        raise ParameterError("; ".join(wrong))
    for name, field in NodeSettings.model_fields.items():
        value = ros_value(getattr(settings, name))
        node.declare_parameter(name, value, _descriptor(field), ignore_override=True)
    return settings


def unknown_parameters(names: Iterable[str], declared: Iterable[str]) -> list[str]:
    """Return a sentence for each name, given in a file or on the command line, that the node does not have."""
    known = set(declared)
    sentences = []
    for name in sorted(set(names) - known):
        if not name.startswith(QOS_OVERRIDES):
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(sorted(NodeSettings.model_fields))}"
            sentences.append(f"received the parameter '{name}', which this node does not have: {hint}")
    return sentences


def wrong_qos_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return a clause for each `qos_overrides` parameter with a value that rclpy cannot use."""
    from rclpy.qos import HistoryPolicy, ReliabilityPolicy

    policies = {"reliability": ReliabilityPolicy, "history": HistoryPolicy}
    clauses = []
    for name, value in sorted(values.items()):
        policy = name.rpartition(".")[2] if name.startswith(QOS_OVERRIDES) else ""
        if policy in policies:
            expected = [key for key in policies[policy].short_keys() if key != "unknown"]
            if str(value).lower() not in expected:
                clauses.append(f"{name}: received {value!r}; expected {', '.join(expected)}")
        elif policy == "depth" and (type(value) is not int or value < 0):
            clauses.append(f"{name}: received {value!r}; expected a whole number, 0 or more")
    return clauses


def unused_qos_overrides(names: Iterable[str], declared: Iterable[str]) -> list[str]:
    """Return a sentence for each `qos_overrides` parameter given that names no topic or policy of an active node."""
    known = {name for name in declared if name.startswith(QOS_OVERRIDES)}
    return [
        f"received the parameter '{name}', which changes nothing: expected qos_overrides.TOPIC.publisher.POLICY or "
        "qos_overrides.TOPIC.subscription.POLICY with a topic's full name and reliability, depth or history"
        for name in sorted(set(names) - known)
        if name.startswith(QOS_OVERRIDES)
    ]


def _descriptor(field: FieldInfo) -> Any:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(
        description=field.description or "",
        read_only=AT_START in field.metadata,
        dynamic_typing=isinstance(field.default, float),  # so that an integer is taken; `change` checks the type
    )
    low, high = value_range(field)
    if low is not None and high is not None:
        if isinstance(field.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    one_of = [f"One of: {', '.join(choices(field))}."] if choices(field) else []
    descriptor.additional_constraints = " ".join([*one_of, f"Changes: {changes(field)}."])
    return descriptor


def _plain(value: Any) -> Any:
    """Return arrays of numbers, which rclpy gives as array.array or list, as the tuples of the settings."""
    return value if isinstance(value, (str, bool, int, float)) or value is None else tuple(value)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
