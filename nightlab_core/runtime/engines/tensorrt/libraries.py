# SPDX-License-Identifier: Apache-2.0
"""Find the installed TensorRT libraries, `tensorrt` and `tensorrt_rtx`, which share one API.

`tensorrt` is for Jetson (part of JetPack) and data-centre GPUs, and builds only on the GPU that will run the plan.
`tensorrt_rtx` is TensorRT for RTX: it builds without a GPU for several generations of GPUs, and compiles the last step
on the GPU when a plan is loaded.
"""

from __future__ import annotations

import importlib
import logging
import platform
import sys
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal, get_args

from nightlab_core.runtime.engines.tensorrt.cuda import Device

TensorRtName = Literal["tensorrt", "tensorrt_rtx"]
#: Remedy for a missing library.
PACKAGES = {
    "tensorrt": "JetPack's python3-libnvinfer, or pip's tensorrt",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13 (tensorrt-rtx-cu12 for a driver of CUDA 12)",
}
#: Default compute capabilities of a plan of TensorRT for RTX. Turing (7.5) is left out, as in NVIDIA's own default:
#: with it the plan of the shipped image network grows from 17 to 208 MB.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")

log = logging.getLogger(__name__)


class TensorRtError(RuntimeError):
    """TensorRT refused a network, a plan or a call; the message has its reason."""


@dataclass(frozen=True)
class Target:
    """The GPUs that a plan runs on."""

    capabilities: tuple[str, ...]  #: compute capabilities, e.g. ("8.7",)
    gpu_name: str = ""  #: the model of GPU that the plan was tuned on; empty: every GPU of these capabilities

    def __str__(self) -> str:
        return f"{self.gpu_name or 'any GPU'} of compute capability {', '.join(self.capabilities)}"

    def serves(self, wanted: Target) -> bool:
        """Return True if a plan for this target may run on the target `wanted`."""
        same_gpu = self.gpu_name in ("", wanted.gpu_name)
        return same_gpu and set(wanted.capabilities) <= set(self.capabilities)


@dataclass(frozen=True)
class TensorRtLibrary:
    """An installed TensorRT library."""

    name: TensorRtName
    trt: Any  #: the module

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def needs_gpu_to_build(self) -> bool:
        return self.name == "tensorrt"

    def logger(self) -> Any:
        """Return TensorRT's logger. Warnings go to Python's logging; errors are kept for the exception that follows."""
        return _logger(self.trt)[0]

    @property
    def messages(self) -> list[str]:
        """The errors that TensorRT logged since the list was cleared."""
        return _logger(self.trt)[1]

    def error(self, problem: str) -> TensorRtError:
        """Return an error with the first reason that TensorRT logged; later ones follow from it."""
        reason = self.messages[0] if self.messages else "TensorRT gave no reason"
        self.messages.clear()
        return TensorRtError(f"{problem}: {reason}")

    def target(self, device: Device | None, capabilities: tuple[str, ...] = ()) -> Target:
        """Return the target to build for: these capabilities, or the default for this GPU.

        Raises TensorRtError if the library cannot build for it.
        """
        if self.needs_gpu_to_build:
            if device is None:
                raise TensorRtError(
                    "tensorrt builds only on the GPU that will run the plan, and there is none here: build on the "
                    "vehicle, or with tensorrt_rtx (--library tensorrt_rtx), which needs no GPU"
                )
            if capabilities not in ((), (device.capability,)):
                raise TensorRtError(
                    f"tensorrt builds for the GPU at hand, {device}: received compute capabilities "
                    f"{', '.join(capabilities)}; leave them out, or use --library tensorrt_rtx"
                )
            return Target((device.capability,), device.name)
        if capabilities:
            known = self.known_capabilities()
            unknown = sorted(set(capabilities) - set(known))
            if unknown:
                raise TensorRtError(
                    f"tensorrt_rtx {self.version} does not know compute capability {', '.join(unknown)}; it knows "
                    f"{', '.join(known)}"
                )
            return Target(tuple(c for c in known if c in capabilities))
        if device is not None and device.capability not in RTX_CAPABILITIES:
            return Target((device.capability,), device.name)  # for this very GPU, if TensorRT can
        return Target(RTX_CAPABILITIES)

    def known_capabilities(self) -> tuple[str, ...]:
        """Return the compute capabilities that TensorRT for RTX can build for, for example ("7.5", "8.0")."""
        numbers = [n[2:] for n in self.trt.ComputeCapability.__members__ if n.startswith("SM")]
        return tuple(f"{n[:-1]}.{n[-1]}" for n in sorted(numbers, key=int))


@cache
def _logger(trt: Any) -> tuple[Any, list[str]]:
    """Return the logger of this process and its errors. TensorRT keeps the first logger that it gets."""
    messages: list[str] = []
    severity = trt.ILogger.Severity

    class TensorRtLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                messages.append(message)
            elif level == severity.WARNING:
                log.warning("TensorRT: %s", message)
            else:
                log.debug("TensorRT: %s", message)

    return TensorRtLogger(), messages


def platform_name() -> str:
    """Return operating system and processor, to which a plan is bound, for example "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine()}"


def import_library(name: TensorRtName) -> TensorRtLibrary:
    """Import one library. Raises ImportError that says what to install or what is missing."""
    try:
        module: ModuleType = importlib.import_module(name)
        if not hasattr(module, "Builder"):  # an uninstalled package left its folder
            raise ImportError(f"{name} contains no TensorRT")
    except (ImportError, OSError) as error:
        raise ImportError(f"{name} cannot be used ({error}); it comes with {PACKAGES[name]}") from error
    return TensorRtLibrary(name, module)


def installed_libraries() -> list[TensorRtLibrary]:
    """Return the libraries that can be imported, `tensorrt` first, since it tunes plans for one GPU."""
    found = []
    for name in get_args(TensorRtName):
        try:
            found.append(import_library(name))
        except ImportError as error:
            log.debug("%s", error)
    return found
