# SPDX-License-Identifier: Apache-2.0
"""What a run shows without labels: how the two levels agree, how sure they are, how labels flicker, where the hard
regions lie, and all of it by light level and over time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from nightlab_core.runtime.light import LIGHT_BINS
from nightlab_replay.intervals import Figures
from nightlab_replay.records import FrameRecord

HEAT_GRID_HW = (18, 32)
#: No more points than this are drawn of a drive.
TIMELINE_POINTS = 240


class LightBehaviour(Figures):
    """What can be said without labels, at one light level. Means over frames; None where no frame has the number."""

    name: str
    span: str
    frames: int
    confidence: float | None  #: 0..1
    agreement: float | None
    flicker: float | None
    regions: float | None


class Behaviour(Figures):
    """What can be said without labels. What concerns regions is None where they are not known, as of a live run."""

    confidence: float | None  #: 0..1, mean over frames
    agreement: float | None  #: share of pixels that both levels label alike
    flicker: float | None  #: share of still pixels whose label changed since the frame before
    by_light: tuple[LightBehaviour, ...]
    regions_per_frame: tuple[int, ...] | None  #: frames with 0, 1, 2 ... hard regions
    refined_per_frame: tuple[int, ...] | None  #: frames in which 0, 1, 2 ... of them were read enlarged
    region_heat: tuple[tuple[float, ...], ...] | None  #: share of frames with a region there, rows from the top


class Timeline(Figures):
    """A drive, drawn with few points. A point is the mean over its frames; `None` where no frame has the number."""

    seconds: tuple[float, ...]  #: since the first frame; bags follow each other
    light_level: tuple[float | None, ...]
    confidence: tuple[float | None, ...]  #: 0..1
    lost: tuple[int, ...]  #: frames dropped or unreadable
    bag_starts: dict[str, float]


def behaviour_of(ok: Sequence[FrameRecord], regions: bool = True) -> Behaviour:
    """From the records of frames that were segmented; `regions` says whether these hold the hard regions."""
    by_light = []
    for part in LIGHT_BINS:
        held = [r for r in ok if part.holds(r.light_level)]
        by_light.append(
            LightBehaviour(
                name=part.name,
                span=part.span,
                frames=len(held),
                confidence=_mean([_confidence(r) for r in held]),
                agreement=_mean([r.agreement for r in held]),
                flicker=_mean([r.flicker for r in held]),
                regions=_mean([float(len(r.boxes_xyxy)) for r in held]) if regions else None,
            )
        )
    return Behaviour(
        confidence=_mean([_confidence(r) for r in ok]),
        agreement=_mean([r.agreement for r in ok]),
        flicker=_mean([r.flicker for r in ok]),
        by_light=tuple(by_light),
        regions_per_frame=_histogram([len(r.boxes_xyxy) for r in ok]) if regions else None,
        refined_per_frame=_histogram([sum(r.refined) for r in ok]) if regions else None,
        region_heat=_region_heat(ok) if regions else None,
    )


def _histogram(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(np.bincount(np.array(values, np.int64)).tolist()) if values else ()


def _region_heat(ok: Sequence[FrameRecord]) -> tuple[tuple[float, ...], ...]:
    """Share of frames in which a region covers the middle of a cell of HEAT_GRID_HW."""
    rows, columns = HEAT_GRID_HW
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    heat = np.zeros(HEAT_GRID_HW)
    for record in ok:
        covered = np.zeros(HEAT_GRID_HW, bool)
        for x1, y1, x2, y2 in record.boxes_xyxy:
            covered |= ((y1 <= y) & (y < y2))[:, None] & ((x1 <= x) & (x < x2))
        heat += covered
    return tuple(map(tuple, (heat / max(len(ok), 1)).tolist()))


def timeline_of(records: Sequence[FrameRecord]) -> Timeline:
    """Bags one after the other, each from its first frame's time of recording."""
    seconds, starts, offset = np.zeros(len(records)), {}, 0.0
    by_bag: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        by_bag.setdefault(record.bag, []).append(place)
    for bag, places in by_bag.items():
        starts[bag] = offset
        times = np.array([records[p].time_ns for p in places], np.float64)
        seconds[places] = offset + (times - times.min()) / 1e9
        offset = float(seconds[places].max()) + 1e-3
    edges = np.linspace(0, len(records), min(TIMELINE_POINTS, len(records)) + 1).astype(int)
    spans = [list(range(a, b)) for a, b in itertools.pairwise(edges)]

    def means(get: Callable[[FrameRecord], float | None]) -> tuple[float | None, ...]:
        return tuple(_mean([get(records[i]) for i in span]) for span in spans)

    return Timeline(
        seconds=tuple(float(np.mean(seconds[span])) for span in spans),
        light_level=means(lambda r: r.light_level),
        confidence=means(_confidence),
        lost=tuple(sum(records[i].status != "ok" for i in span) for span in spans),
        bag_starts=starts,
    )


def _confidence(record: FrameRecord) -> float | None:
    return None if record.mean_confidence is None else record.mean_confidence / 255


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
