# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: one settings class, from which ROS descriptors, checks and docs/parameters.md derive."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from nightlab_core.config import replace
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions, PathsChoice, PrecisionChoice
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_ros.monitoring.health_rules import HealthLimits

#: Marks in a field's metadata that say when it may change. Without a mark: at any time, from the next frame on.
AT_CONFIGURE, AT_START = "at configure", "at start"
#: Start of the names of parameters with which rclpy sets the quality of service of topics.
QOS_OVERRIDES = "qos_overrides."
#: Types of parameters, as ROS names them.
ROS_TYPES = {bool: "bool", int: "integer", float: "double", str: "string"}
#: One level of a topic's name, or "" for the only camera of a node.
CameraName = Annotated[str, Field(pattern=r"^([A-Za-z][A-Za-z0-9_]*)?$")]
Side = Annotated[int, Field(ge=0, le=65535)]
#: Defaults of the options of the engines.
_ENGINE = EngineOptions()


def _engine_option(name: str) -> FieldInfo:
    """Return a field with the description and the range of an option of the engines."""
    option = EngineOptions.model_fields[name]
    low, high = value_range(option)
    return Field(ge=low, le=high, description=option.description)


def value_range(field: FieldInfo) -> tuple[float | None, float | None]:
    """Return the lowest and the highest value of a number, or None."""
    low = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    return low, high


class NodeSettings(PipelineSettings):
    """All parameters of the node, flat as in ROS. It inherits those of the pipeline."""

    bundle: Annotated[
        str, AT_CONFIGURE, Field(description="folder of the bundle; empty: the bundle that ships with the package")
    ] = ""
    engine: Annotated[EngineChoice, AT_CONFIGURE, _engine_option("engine")] = _ENGINE.engine
    build_engines: Annotated[
        bool,
        AT_CONFIGURE,
        Field(description="build missing TensorRT plans while the node configures, which takes minutes"),
    ] = _ENGINE.build
    precision: Annotated[PrecisionChoice, AT_CONFIGURE, _engine_option("precision")] = _ENGINE.precision
    threads: Annotated[int, AT_CONFIGURE, _engine_option("threads")] = _ENGINE.threads
    region_batch: Annotated[int, AT_CONFIGURE, _engine_option("region_batch")] = _ENGINE.region_batch
    paths: Annotated[PathsChoice, AT_CONFIGURE, _engine_option("paths")] = _ENGINE.paths
    calibration_s: Annotated[float, AT_CONFIGURE, _engine_option("calibration_s")] = _ENGINE.calibration_s
    cameras: Annotated[
        tuple[CameraName, ...],
        AT_CONFIGURE,
        Field(
            description="names of the cameras, which share the engines and take turns: `front` subscribes to "
            "`front/image` and publishes `~/front/mask`; the empty name: one camera, whose topics have no prefix"
        ),
    ] = ("",)
    transport: Annotated[
        Literal["raw", "compressed"],
        AT_CONFIGURE,
        Field(description="raw subscribes to `image`, compressed to `image/compressed` (JPEG or PNG)"),
    ] = "raw"
    image_size: Annotated[
        tuple[Side, Side],
        AT_CONFIGURE,
        Field(
            description="width and height of the camera's images in pixels, to compile for while the node configures; "
            "0, 0: compile at the first image, without TensorRT, whose plans fit one size"
        ),
    ] = (0, 0)
    pixel_bits: Annotated[
        int,
        AT_CONFIGURE,
        Field(
            ge=0,
            le=16,
            description="significant bits of images with 16-bit pixels, 8 to 16; "
            "0: measured over the first frames after configure, and logged",
        ),
    ] = 0
    overlay: Annotated[bool, Field(description="draw `~/overlay` while there is a subscription")] = True
    overlay_opacity: Annotated[
        float, Field(ge=0, le=1, description="weight of the class colours in `~/overlay`; 0: the image, 1: the colours")
    ] = 0.5
    warn_age_ms: Annotated[
        float,
        Field(
            ge=0,
            le=3_600_000,
            description="milliseconds from an image's stamp until its mask, by the node's clock: older masks are a "
            "warning in /diagnostics. 0: never",
        ),
    ] = 1000.0
    warn_drop_percent: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="share of images dropped over 5 s: a higher one is a warning in /diagnostics. 0: never",
        ),
    ] = 90.0
    warn_rate_hz: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="masks per second: a lower rate is a warning in /diagnostics, if images come at least as fast. "
            "0: never",
        ),
    ] = 0.5
    capture_dir: Annotated[
        str, Field(description="folder of the captures that the service `~/capture` writes; ~ is the home directory")
    ] = "~/.ros/nightlab_captures"
    capture_max_mb: Annotated[
        int,
        Field(
            ge=1, le=1_000_000, description="size of all captures in 10^6 bytes; the oldest are deleted for a new one"
        ),
    ] = 500
    capture_below_confidence: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="a frame whose light level is below `night_below` is captured by itself if the mean confidence "
            "of its mask is lower than this. 0: never",
        ),
    ] = 0.0
    capture_period_s: Annotated[
        float,
        Field(ge=1, le=1_000_000, description="seconds between two captures that a camera makes by itself, at least"),
    ] = 60.0
    autostart: Annotated[
        bool,
        AT_START,
        Field(description="configure and activate at start, without a launch file or a lifecycle manager"),
    ] = False

    @field_validator("image_size")
    @classmethod
    def _both_or_neither(cls, size: tuple[int, int]) -> tuple[int, int]:
        if (size[0] == 0) != (size[1] == 0):
            raise ValueError("expected both sides, or 0 and 0")
        return size

    @field_validator("cameras")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("expected names that differ")
        return names or ("",)

    @field_validator("pixel_bits")
    @classmethod
    def _automatic_or_possible(cls, bits: int) -> int:
        if 0 < bits < 8:
            raise ValueError("expected 8 to 16, or 0")
        return bits

    @property
    def image_hw(self) -> tuple[int, int] | None:
        """Height and width of the camera's images, or None if `image_size` does not tell."""
        return self.image_size[::-1] if self.image_size != (0, 0) else None

    def engine_options(self) -> EngineOptions:
        """Return the options with which the engines are opened."""
        return EngineOptions(
            engine=self.engine,
            precision=self.precision,
            threads=self.threads,
            region_batch=self.region_batch,
            paths=self.paths,
            calibration_s=self.calibration_s,
            frame_hw=self.image_hw,
            build=self.build_engines,
        )

    def health_limits(self) -> HealthLimits:
        """Return the limits beyond which /diagnostics warns."""
        return HealthLimits(self.warn_age_ms, self.warn_drop_percent, self.warn_rate_hz)

    def pipeline_settings(self) -> PipelineSettings:
        """Return the settings of the pipeline."""
        return PipelineSettings(**{name: getattr(self, name) for name in PipelineSettings.model_fields})


class ParameterError(ValueError):
    """A value that is refused. The message is the reason that the caller of the set service gets."""


def change(settings: NodeSettings, values: Mapping[str, Any], configured: bool) -> NodeSettings:
    """Return a validated copy of the settings with other values; names that are no settings are ignored.

    Raises ParameterError that names each parameter, what was received and what is expected. A configured node refuses
    parameters that change at configure only.
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
    """Declare every parameter on an rclpy node and return its first settings.

    Raises ParameterError that names all wrong values of the file and the command line at once.
    """
    given = {name: parameter.value for name, parameter in node._parameter_overrides.items()}
    settings = change(NodeSettings(), given, configured=False)
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


def unused_qos_overrides(names: Iterable[str], declared: Iterable[str]) -> list[str]:
    """Return a sentence for each `qos_overrides` parameter given that names no topic or policy of an active node."""
    known = {name for name in declared if name.startswith(QOS_OVERRIDES)}
    return [
        f"received the parameter '{name}', which changes nothing: expected qos_overrides.TOPIC.publisher.POLICY or "
        "qos_overrides.TOPIC.subscription.POLICY with a topic's full name and reliability, depth or history"
        for name in sorted(set(names) - known)
        if name.startswith(QOS_OVERRIDES)
    ]


def ros_value(value: Any) -> Any:
    """Return a setting as rclpy takes it."""
    return list(value) if isinstance(value, tuple) else value


def ros_type(field: FieldInfo) -> str:
    """Return the type of a parameter, as ROS names it."""
    if isinstance(field.default, tuple):
        return f"{ROS_TYPES[type(field.default[0])]} array"
    return ROS_TYPES[type(field.default)]


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the values of a parameter that has a fixed set of them, or ()."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def changes(field: FieldInfo) -> str:
    """Return when a parameter may change."""
    return next((mark for mark in (AT_CONFIGURE, AT_START) if mark in field.metadata), "at any time")


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
