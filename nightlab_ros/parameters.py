# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: one settings class, from which ROS descriptors, checks and docs/parameters.md derive."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, Field, field_validator
from pydantic.fields import FieldInfo

from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions, PathsChoice, PrecisionChoice
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_ros.monitoring.health_rules import HealthLimits

#: Marks in a field's metadata that say when it may change. Without a mark: at any time, from the next frame on.
AT_CONFIGURE, AT_START = "at configure", "at start"
#: Types of parameters, as ROS names them.
ROS_TYPES = {bool: "bool", int: "integer", float: "double", str: "string"}
#: One level of a topic's name, or "" for the only camera of a node.
CameraName = Annotated[str, Field(pattern=r"^([A-Za-z][A-Za-z0-9_]*)?$")]
#: A path, whose ~ is replaced by the home directory where there is one.
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
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
        PathText,
        AT_CONFIGURE,
        Field(description="folder of the bundle, where ~ is the home directory; empty: the bundle of the package"),
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
    output_size: Annotated[
        Literal["input", "network"],
        Field(
            description="size of the masks and confidences: input, the image's, or network, that of the image network, "
            "which has the image's aspect and fewer pixels; `~/camera_info` is scaled to it"
        ),
    ] = "input"
    autoware_classes: Annotated[
        PathText,
        AT_CONFIGURE,
        Field(
            description="publish `~/autoware/mask` in this class set: `autoware16`, or the YAML file of your own that "
            "maps the bundle's classes, where ~ is the home directory; empty: never"
        ),
    ] = ""
    overlay: Annotated[
        bool, Field(description="draw `~/overlay` and `~/overlay/compressed` while there is a subscription")
    ] = True
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
        PathText,
        Field(
            validate_default=True,
            description="folder of the captures that the service `~/capture` writes; ~ is the home directory",
        ),
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
