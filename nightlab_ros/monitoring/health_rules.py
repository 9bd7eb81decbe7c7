# SPDX-License-Identifier: Apache-2.0
"""Rules that turn the facts about a camera's stream into the level and the sentence of /diagnostics. Imports no ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nightlab_ros.monitoring import degradation as dg
from nightlab_ros.monitoring.degradation import ERROR, OK, WARN, Finding, Mode, worst_mode

__all__ = ["ERROR", "LOADING_S", "OK", "PREPARING_S", "WARN", "Facts", "HealthLimits", "judge", "mixed_publishers"]
#: Seconds for which a failure or a loss is reported, and after which silence is.
REPORTED_S = 2.0
#: Different reasons of failures in one message.
MAX_REASONS = 5
#: Seconds over which rates and ratios are judged, and for which a clock may stand still.
JUDGED_S = 5.0
#: Preparations of the engines in a minute that are a warning if they are more.
PREPARATIONS_PER_MINUTE = 3
#: Seconds without a mask that preparing the engines explains, and loading them, for which TensorRT may build plans.
PREPARING_S, LOADING_S = 60.0, 1800.0
#: Age in seconds that no delay explains: the stamps are wrong.
STAMP_FAULT_S = 3600.0
#: Milliseconds by which stamps may be ahead: one step of a simulated clock that advances with the images at 10 Hz. Two
#: clocks that NTP keeps differ by less.
AHEAD_MS = 100.0


@dataclass(frozen=True)
class HealthLimits:
    """Limits beyond which a running stream is a warning; 0 switches a limit off."""

    age_ms: float = 0.0  #: highest age of a mask
    drop_percent: float = 0.0  #: highest share of images that are never processed
    rate_hz: float = 0.0  #: lowest rate of masks, where images come at least as fast


@dataclass(frozen=True)
class Facts:
    """Facts about an active stream. Seconds are those of a clock that never jumps."""

    failures: Sequence[str] = ()  #: reasons of the frames that failed in the last `REPORTED_S`
    waited_s: float = 0.0  #: since the first image without a mask or a failure
    patience_s: float = REPORTED_S  #: `waited_s` that is normal
    delay_reason: str = ""  #: reason why the next mask takes longer
    delay_s: float = PREPARING_S  #: `waited_s` that `delay_reason` explains
    silence_s: float | None = 0.0  #: since the last image; None: no image yet
    lost: bool = False  #: images were lost in the last `REPORTED_S`
    loss_advice: str = ""
    publishers: Sequence[str] = ()  #: full names of the nodes that publish the topic
    clock_stopped_s: float = 0.0  #: for which the node's clock has stood still
    age_ms: float | None = None  #: median over the last masks; None: no mask yet
    drop_percent: float = 0.0  #: over the last `JUDGED_S`
    received_hz: float = 0.0  #: over the last `JUDGED_S`
    rate_hz: float | None = None  #: masks per second; None: fewer than two masks so far
    sizes: int = 0  #: number of distinct image sizes
    preparations: int = 0  #: of the engines, in the last minute
    refinement_error: str = ""  #: why the last mask is the image level's alone; "": no error
    refinement_late: bool = False  #: no hard region was read for `REPORTED_S` or longer, though some were wanted
    refinement_lost_s: float = 0.0  #: since the first such mask


def judge(facts: Facts, limits: HealthLimits) -> tuple[int, str, Mode]:
    """Return the highest level, the sentences, and the worst mode of all rules that apply.

    OK, "running" and "full" if none does.
    """
    found = [*_missing_masks(facts), *_troubled_input(facts)]
    if facts.silence_s is not None and facts.silence_s < REPORTED_S:
        found += _troubled_stream(facts, limits)
    if not found:
        return OK, "running", "full"
    message = "; ".join(finding.sentence for finding in found)
    return max(finding.level for finding in found), message, worst_mode(found)


def mixed_publishers(names: Sequence[str]) -> str:
    """Return the sentence on several nodes that publish one camera topic."""
    return dg.SEVERAL_PUBLISHERS(names=" and ".join(names)).sentence


def _missing_masks(facts: Facts) -> Iterator[Finding]:
    reasons = list(dict.fromkeys(facts.failures))
    for reason in reasons[:MAX_REASONS]:
        times = facts.failures.count(reason)
        yield dg.FRAME_FAILED(reason=reason, times=f" ({times} times in {REPORTED_S:.0f} s)" if times > 1 else "")
    if len(reasons) > MAX_REASONS:
        yield dg.FRAME_FAILED(reason=f"for {len(reasons) - MAX_REASONS} other reasons", times="")
    if facts.waited_s < facts.patience_s:
        return
    if facts.delay_reason and facts.waited_s < facts.delay_s:
        yield dg.PREPARING(reason=facts.delay_reason, seconds=facts.waited_s)
    elif facts.delay_reason:
        yield dg.PREPARING_FOR_LONG(reason=facts.delay_reason, seconds=facts.waited_s)
    elif facts.waited_s < 5 * facts.patience_s:
        yield dg.NO_MASK(seconds=facts.waited_s)
    else:
        yield dg.NO_MASK_FOR_LONG(seconds=facts.waited_s)


def _troubled_input(facts: Facts) -> Iterator[Finding]:
    if len(facts.publishers) > 1:
        yield dg.SEVERAL_PUBLISHERS(names=" and ".join(facts.publishers))
    if facts.lost:
        yield dg.LOST_IMAGES(advice=facts.loss_advice)
    if facts.silence_s is None:
        yield dg.NO_IMAGES_YET()
    elif facts.silence_s >= REPORTED_S:
        yield dg.SILENCE(seconds=facts.silence_s)


def _troubled_stream(facts: Facts, limits: HealthLimits) -> Iterator[Finding]:
    """Yield what is wrong while images arrive."""
    if facts.clock_stopped_s >= JUDGED_S:
        yield dg.CLOCK_STOPPED(seconds=facts.clock_stopped_s)
    if facts.preparations > PREPARATIONS_PER_MINUTE:
        yield dg.SIZES_ALTERNATE(sizes=facts.sizes, preparations=facts.preparations)
    if facts.refinement_error:
        yield dg.REFINEMENT_LOST(seconds=facts.refinement_lost_s, reason=facts.refinement_error)
    elif facts.refinement_late:
        yield dg.REFINEMENT_LATE(seconds=facts.refinement_lost_s)
    if facts.age_ms is not None:
        yield from _judge_age(facts.age_ms, limits.age_ms)
    if facts.waited_s >= facts.patience_s:
        return  # no mask comes out, which is reported above
    if limits.drop_percent and facts.drop_percent > limits.drop_percent:
        yield dg.DROPS(percent=facts.drop_percent, limit=limits.drop_percent)
    if facts.rate_hz is not None and facts.rate_hz < limits.rate_hz <= facts.received_hz:
        yield dg.LOW_RATE(rate_hz=facts.rate_hz, limit=limits.rate_hz)


def _judge_age(age_ms: float, highest_ms: float) -> Iterator[Finding]:
    if age_ms < -AHEAD_MS:
        yield dg.FUTURE_STAMPS()
    elif highest_ms and age_ms >= 1e3 * STAMP_FAULT_S:
        yield dg.PAST_STAMPS(hours=age_ms / 3.6e6)
    elif highest_ms and age_ms > highest_ms:
        yield dg.OLD_MASKS(age_ms=age_ms, limit=highest_ms)
