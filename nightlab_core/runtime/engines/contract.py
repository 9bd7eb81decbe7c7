# SPDX-License-Identifier: Apache-2.0
"""State the names, dtypes and shapes that the three networks of a bundle must have, and check engines against them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nightlab_core.runtime.bundle import BundleError, EngineKind
from nightlab_core.runtime.engines.engine import Engine, TensorSpec

ANY = -1  #: a size that may be fixed or free; a number must have this value, and None must be free at run time
_Contract = Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]]
_LABELS: _Contract = {"labels": (np.uint8, (ANY, ANY, ANY)), "confidence": (np.uint8, (ANY, ANY, ANY))}
_FRAME: _Contract = {"frame": (np.uint8, (1, None, None, 3))}
_BOXES: _Contract = {"boxes": (np.float32, (ANY, ANY, 4)), "scores": (np.float32, (ANY, ANY))}
_CROPS: _Contract = {"crops": (np.uint8, (None, ANY, ANY, 3))}
_PROBABILITIES: _Contract = {"probabilities": (np.uint8, (ANY, ANY, ANY, ANY))}
_CONTEXT: _Contract = {"context": (np.uint8, (None, ANY, ANY, ANY))}


def contract_of(kind: EngineKind, *, context: bool) -> tuple[_Contract, _Contract]:
    """Return inputs and outputs of a kind of engine; `context` is the key of the bundle's region network."""
    if kind == "image":
        return _FRAME, {**_LABELS, **(_PROBABILITIES if context else {})}
    if kind == "hardness":
        return _FRAME, _BOXES
    return {**_CROPS, **(_CONTEXT if context else {})}, _LABELS


def check_contract(kind: EngineKind, engine: Engine, *, context: bool = False) -> None:
    """Raise BundleError unless the engine's inputs and outputs have the contract's names, dtypes and shapes."""
    for side, received, expected in zip(
        ("input", "output"), (engine.inputs, engine.outputs), contract_of(kind, context=context), strict=True
    ):
        spare = _PROBABILITIES if kind == "image" else {}  # which a region network without context leaves unused
        if not set(expected) <= set(received) <= {*expected, *spare}:
            raise BundleError(_violation(kind, f"{side}s", sorted(received), sorted(expected)))
        for name, (dtype, shape) in expected.items():
            spec = received[name]
            if spec.dtype != dtype or len(spec.shape) != len(shape) or not all(map(_fits, spec.shape, shape)):
                wanted = TensorSpec(np.dtype(dtype), tuple(None if s == ANY else s for s in shape))
                raise BundleError(_violation(kind, f"{side} {name!r}", spec, wanted))


def _fits(size: int | None, wanted: int | None) -> bool:
    return wanted == ANY or (size is None if wanted is None else size in (None, wanted))


def _violation(kind: str, part: str, received: object, expected: object) -> str:
    return (
        f"the {kind} network's {part}: received {received}, expected {expected} ('?' is a size free at run time); "
        "export the bundle again with the exporter of this version"
    )
