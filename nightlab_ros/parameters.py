# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: one settings class, from which their ROS descriptors, their checks and their table derive.

``python -m nightlab_ros.parameters`` prints the table as Markdown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from nightlab_core.config import replace
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions
from nightlab_core.runtime.pipeline import PipelineSettings

#: Marks in a field's metadata that say when it may change. Without one: at any time, from the next frame on.
AT_CONFIGURE, AT_START = "at configure", "at start"
Side = Annotated[int, Field(ge=0, le=65535)]
_ROS_TYPES = {bool: "bool", int: "integer", float: "double", str: "string", tuple: "integer array"}


class NodeSettings(PipelineSettings):
    """Every parameter of the node, flat as ROS has them; those of the pipeline are the core's own."""

    bundle: Annotated[str, AT_CONFIGURE, Field(description="folder of the bundle; empty: the one in the package")] = ""
    engine: Annotated[
        EngineChoice,
        AT_CONFIGURE,
        Field(
            description="library that runs the networks; auto: TensorRT where a GPU and its plans are, else OpenVINO, "
            "else ONNX Runtime"
        ),
    ] = "auto"
    build_engines: Annotated[
        bool,
        AT_CONFIGURE,
        Field(description="build TensorRT plans that are missing while configuring, which takes minutes"),
    ] = False
    precision: Annotated[
        Literal["auto", "float32"],
        AT_CONFIGURE,
        Field(description="arithmetic; auto lets the engine use half precision where the hardware has it"),
    ] = "auto"
    threads: Annotated[int, AT_CONFIGURE, Field(ge=0, le=1024, description="threads per engine; 0: its own choice")] = 0
    transport: Annotated[
        Literal["raw", "compressed"],
        AT_CONFIGURE,
        Field(description="raw subscribes to `image`, compressed to `image/compressed` (JPEG or PNG)"),
    ] = "raw"
    image_size: Annotated[
        tuple[Side, Side],
        AT_CONFIGURE,
        Field(
            description="width and height of the camera, to compile for at configure; 0, 0: compile at the "
            "first frame, and leave out TensorRT, whose plans are made for one size"
        ),
    ] = (0, 0)
    overlay: Annotated[bool, Field(description="draw `~/overlay` while someone listens")] = True
    overlay_opacity: Annotated[float, Field(ge=0, le=1, description="how much the class colours cover the picture")] = (
        0.5
    )
    autostart: Annotated[
        bool,
        AT_START,
        Field(description="configure and activate once without being told, for use without a launch file"),
    ] = False

    @field_validator("image_size")
    @classmethod
    def _both_or_neither(cls, size: tuple[int, int]) -> tuple[int, int]:
        if (size[0] == 0) != (size[1] == 0):
            raise ValueError("expected both sides, or 0 and 0")
        return size

    def engines(self) -> EngineOptions:
        """The part that opens the engines."""
        return EngineOptions(
            engine=self.engine,
            precision=self.precision,
            threads=self.threads,
            frame_hw=self.image_size[::-1] if self.image_size != (0, 0) else None,
            build=self.build_engines,
        )

    def pipeline(self) -> PipelineSettings:
        """The part that the pipeline reads."""
        return PipelineSettings(**{name: getattr(self, name) for name in PipelineSettings.model_fields})


class ParameterError(ValueError):
    """A parameter that is refused; the message is the reason that the caller of the set service gets."""


def changed(settings: NodeSettings, values: Mapping[str, Any], configured: bool) -> NodeSettings:
    """Validated settings with some values replaced; names that are not the node's own settings are passed over.

    Raises ParameterError naming each parameter, what was received and what is expected, also where a parameter takes
    effect at configure only and the node is configured already.
    """
    own = {name: _plain(value) for name, value in values.items() if name in NodeSettings.model_fields}
    if configured:
        for name, value in own.items():
            if AT_CONFIGURE in NodeSettings.model_fields[name].metadata and value != getattr(settings, name):
                raise ParameterError(f"{name} takes effect at the next configure: deactivate and cleanup first")
    try:
        return replace(settings, **own)
    except ValidationError as error:
        lines = [f"{e['loc'][0]}: received {e['input']!r}; {_lower(e['msg'])}" for e in error.errors()]
        raise ParameterError("; ".join(lines)) from error


def declare(node: Any) -> NodeSettings:
    """Declare every parameter on an rclpy node and return the settings that it starts with.

    Raises ParameterError, or rclpy's own errors for a wrong type or a value outside its range.
    """
    values = {}
    for name, field in NodeSettings.model_fields.items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        values[name] = node.declare_parameter(name, default, _descriptor(field)).value
    return changed(NodeSettings(), values, configured=False)


def unknown_parameters(names: Iterable[str], declared: Iterable[str]) -> list[str]:
    """A sentence for each name that was given, in a file or on the command line, but that the node does not have."""
    known = set(declared)
    sentences = []
    for name in sorted(set(names) - known):
        if not name.startswith("qos_overrides."):
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(sorted(NodeSettings.model_fields))}"
            sentences.append(f"parameter '{name}' was given but this node has none of that name: {hint}")
    return sentences


def markdown_table() -> str:
    """The table of parameters for the README."""
    rows = ["| parameter | type | default | values | changes | meaning |", "|---|---|---|---|---|---|"]
    for name, field in NodeSettings.model_fields.items():
        low, high = _range(field)
        values = ", ".join(map(str, _choices(field))) if _choices(field) else "" if low is None else f"{low} to {high}"
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        shown = "`" + (str(default).lower() if isinstance(default, bool) else str(default) or '""') + "`"
        kind = _ROS_TYPES[type(field.default)]
        rows.append(f"| `{name}` | {kind} | {shown} | {values} | {_changes(field)} | {field.description} |")
    return "\n".join(rows)


def _descriptor(field: FieldInfo) -> Any:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(description=field.description or "", read_only=AT_START in field.metadata)
    low, high = _range(field)
    if low is not None and high is not None:
        if isinstance(field.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    choices = [f"One of: {', '.join(_choices(field))}."] if _choices(field) else []
    descriptor.additional_constraints = " ".join([*choices, f"Changes: {_changes(field)}."])
    return descriptor


def _range(field: FieldInfo) -> tuple[float | None, float | None]:
    low = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    return low, high


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _changes(field: FieldInfo) -> str:
    return next((mark for mark in (AT_CONFIGURE, AT_START) if mark in field.metadata), "at any time")


def _plain(value: Any) -> Any:
    """rclpy gives number arrays as array.array or list; the settings hold tuples."""
    return value if isinstance(value, (str, bool, int, float)) or value is None else tuple(value)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    print(markdown_table())
