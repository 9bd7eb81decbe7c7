# SPDX-License-Identifier: Apache-2.0
"""Rules that turn the facts about a camera's stream into the level and the sentence of /diagnostics. Imports no ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OK, WARN, ERROR = 0, 1, 2
#: Seconds for which a failure or a loss is reported, and after which silence is.
REPORTED_S = 2.0
#: Seconds over which rates and ratios are judged, and for which a clock may stand still.
JUDGED_S = 5.0
#: Preparations of the engines in a minute that are a warning if they are more.
PREPARATIONS_PER_MINUTE = 3
#: Age in seconds that no delay explains: the stamps are wrong.
STAMP_FAULT_S = 3600.0


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
    refinement_error: str = ""  #: why the last mask is the image level's alone; "": the lower path works
    refinement_lost_s: float = 0.0  #: since the first such mask


def judge(facts: Facts, limits: HealthLimits) -> tuple[int, str]:
    """Return the highest level and the sentences of all rules that apply; OK and "running" if none does."""
    found = [*_missing_masks(facts), *_troubled_input(facts)]
    if facts.silence_s is not None and facts.silence_s < REPORTED_S:
        found += _troubled_stream(facts, limits)
    if not found:
        return OK, "running"
    return max(level for level, _ in found), "; ".join(sentence for _, sentence in found)


def mixed_publishers(names: Sequence[str]) -> str:
    """Return the sentence on several nodes that publish one camera topic."""
    return f"{' and '.join(names)} publish the same camera topic, and their images mix: remap all but one of them"


def _missing_masks(facts: Facts) -> Iterator[tuple[int, str]]:
    for reason in dict.fromkeys(facts.failures):
        times = facts.failures.count(reason)
        yield ERROR, f"a frame failed: {reason}" + (f" ({times} times in {REPORTED_S:.0f} s)" if times > 1 else "")
    if facts.waited_s < facts.patience_s:
        return
    if facts.delay_reason:
        yield WARN, f"{facts.delay_reason}: no mask for {facts.waited_s:.0f} s"
    else:
        level = ERROR if facts.waited_s >= 5 * facts.patience_s else WARN
        yield level, f"images arrive, but no mask came out for {facts.waited_s:.0f} s"


def _troubled_input(facts: Facts) -> Iterator[tuple[int, str]]:
    if len(facts.publishers) > 1:
        yield WARN, mixed_publishers(facts.publishers)
    if facts.lost:
        yield WARN, facts.loss_advice
    if facts.silence_s is None:
        yield WARN, "no images yet"
    elif facts.silence_s >= REPORTED_S:
        yield WARN, f"no images for {facts.silence_s:.1f} s"


def _troubled_stream(facts: Facts, limits: HealthLimits) -> Iterator[tuple[int, str]]:
    """Yield what is wrong while images arrive."""
    if facts.clock_stopped_s >= JUDGED_S:
        yield WARN, f"the node's clock has stood still for {facts.clock_stopped_s:.0f} s: check use_sim_time and /clock"
    if facts.preparations > PREPARATIONS_PER_MINUTE:
        yield (
            WARN,
            f"images of {facts.sizes} sizes alternate, and the engines were prepared {facts.preparations} times in the "
            "last minute: give each camera a topic of its own, or let the camera keep one size",
        )
    if facts.refinement_error:
        yield WARN, f"only the image level's mask, for {facts.refinement_lost_s:.0f} s: {facts.refinement_error}"
    if facts.age_ms is not None:
        yield from _judge_age(facts.age_ms, limits.age_ms)
    if facts.waited_s >= facts.patience_s:
        return  # no mask comes out, which is reported above
    if limits.drop_percent and facts.drop_percent > limits.drop_percent:
        yield WARN, f"{facts.drop_percent:.0f} % of the images dropped; warn_drop_percent is {limits.drop_percent:g}"
    if facts.rate_hz is not None and facts.rate_hz < limits.rate_hz <= facts.received_hz:
        yield WARN, f"{facts.rate_hz:.2f} masks per second; warn_rate_hz is {limits.rate_hz:g}"


def _judge_age(age_ms: float, highest_ms: float) -> Iterator[tuple[int, str]]:
    if age_ms < 0:
        yield WARN, "images are stamped in the future: check the camera's clock and use_sim_time"
    elif highest_ms and age_ms >= 1e3 * STAMP_FAULT_S:
        yield (
            WARN,
            f"images are stamped {age_ms / 3.6e6:.0f} hours in the past: the camera does not set the stamp, its clock "
            "is wrong, or a bag is played without use_sim_time",
        )
    elif highest_ms and age_ms > highest_ms:
        yield WARN, f"masks are {age_ms:.0f} ms old when they are published; warn_age_ms is {highest_ms:g}"
