# SPDX-License-Identifier: Apache-2.0
"""Curves of accuracy against time, which `nightlab benchmark` measures: their file and their picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from markupsafe import Markup

from nightlab_core.benchmark.curve import BY_DEADLINE, BY_REGIONS, BY_SCALE, CurvePoint
from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle
from nightlab_replay.records import JsonModel
from nightlab_replay.report.charts import time_curves

log = logging.getLogger(__name__)
#: Name of the file, which `nightlab benchmark` writes and a bundle's folder may hold.
CURVE_NAME = "curve.json"
#: Curves that the picture shows.
DRAWN = (BY_SCALE, BY_REGIONS, BY_DEADLINE)


class StoredCurves(JsonModel):
    """Curves, with what they were measured with."""

    cpu: str
    cores: str
    engine: str  #: inference library
    bundle: str  #: its name
    networks: dict[str, str]  #: SHA-256 of the bundle's networks by kind
    curves: dict[str, tuple[CurvePoint, ...]]  #: by data set


def networks_of(bundle: Bundle) -> dict[str, str]:
    """Return the SHA-256 of a bundle's networks by kind."""
    return {kind: getattr(bundle.manifest.engines, kind).sha256 for kind in ENGINE_KINDS}


def read_curves(bundle: Bundle) -> StoredCurves | None:
    """Return the curves in a bundle's folder; None without any, or with a warning if they are of other networks."""
    path = bundle.dir / CURVE_NAME
    try:
        found = StoredCurves.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is left out: it cannot be read: %s", path, str(error).splitlines()[0])
        return None
    if found.networks != networks_of(bundle):
        log.warning("%s is left out: it was measured with other networks; run nightlab benchmark again", path)
        return None
    return found


def curve_chart(curve: Sequence[CurvePoint], dataset: str) -> Markup:
    """Draw the image level alone, and both levels by regions and by deadline, as curves over the time."""
    curves: dict[str, list[tuple[str, float, float]]] = {}
    for point in curve:
        if point.curve in DRAWN:
            curves.setdefault(point.curve, []).append((point.name, point.timing.median_ms, 100 * point.miou))
    return time_curves(curves, f"mIoU on {dataset}, %", f"mIoU on {dataset} against time")
