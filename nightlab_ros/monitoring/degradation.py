# SPDX-License-Identifier: Apache-2.0
"""Everything that may go wrong, and what the node then does: the sentences of /diagnostics and docs/degradation.md.

Imports no ROS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

OK, WARN, ERROR = 0, 1, 2
LEVELS = ("OK", "WARN", "ERROR")
#: What still comes out, from best to worst: masks of all levels that `refine` asks for, masks of the image level alone,
#: no masks while the node goes on, or nothing because it has ended.
Mode = Literal["full", "image level only", "no masks", "stopped"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Degradation:
    """A fault, and what it leads to."""

    fault: str
    mode: Mode
    level: int
    sentence: str  #: of /diagnostics, or of the log where the node has ended, with values in braces
    recovery: str
    test: str  #: file and function that inject the fault

    def __call__(self, **values: Any) -> Finding:
        """Return the finding with these values in the sentence."""
        return Finding(self.level, self.sentence.format(**values), self.mode)


@dataclass(frozen=True)
class Finding:
    """A fault that was found now."""

    level: int
    sentence: str
    mode: Mode


def worst_mode(findings: Iterable[Finding]) -> Mode:
    """Return the worst mode of all findings; "full" if there is none."""
    return max((finding.mode for finding in findings), key=MODES.index, default="full")


_AT_ONCE = "with the next image"
FRAME_FAILED = Degradation(
    "An image cannot be decoded, or the image network raises or returns what its contract excludes",
    *("no masks", ERROR, "a frame failed: {reason}{times}"),
    "with the next good image; the failure is reported for 2 s",
    "tests/faults/test_engine_faults.py::test_without_the_image_level_there_are_no_masks",
)
REFINEMENT_LOST = Degradation(
    "The hardness or region network raises, breaks its contract, or does not answer for 5 s (20 s at first)",
    *("image level only", WARN, "only the image level's mask, for {seconds:.0f} s: {reason}"),
    _AT_ONCE,
    "tests/faults/test_engine_faults.py::test_without_refinement_the_image_level_goes_on",
)
REFINEMENT_LATE = Degradation(
    "With `deadline_ms`, no hard region is read in time for 2 s, though some are wanted",
    "image level only",
    WARN,
    "only the image level's mask, for {seconds:.0f} s: no hard region was read before the deadline; deadline_ms is too "
    "low, or a network is slow",
    "with the next image of which a region is read, or in which none is wanted",
    "tests/faults/test_lower_path_faults.py::test_with_a_deadline_a_lower_path_that_hangs_is_a_warning",
)
PREPARING = Degradation(
    "The engines are being loaded, or prepared for another size of images",
    *("no masks", WARN, "{reason}: no mask for {seconds:.0f} s"),
    "when the engines are ready",
    "tests/ros/monitoring/test_health.py::test_images_without_a_mask_are_reported",
)
PREPARING_FOR_LONG = Degradation(
    "The same for 60 s, or for 30 minutes while the engines are loaded and TensorRT may build plans",
    *("no masks", ERROR, "{reason}: no mask for {seconds:.0f} s; an engine does not answer, or is far too slow"),
    "when the engines are ready; otherwise end the process, which does not wait for the engine",
    "tests/ros/monitoring/test_health.py::test_images_without_a_mask_are_reported",
)
NO_MASK = Degradation(
    "No mask comes out for 2 s or five times the usual latency: an engine is slow or hangs",
    *("no masks", WARN, "images arrive, but no mask came out for {seconds:.0f} s"),
    "when the engine answers",
    "tests/faults/test_engine_faults.py::test_an_engine_that_hangs_blocks_neither_diagnostics_nor_services",
)
NO_MASK_FOR_LONG = Degradation(
    "The same, for five times as long",
    *("no masks", ERROR, NO_MASK.sentence),
    "when the engine answers; otherwise end the process, which does not wait for the engine",
    "tests/ros/monitoring/test_health.py::test_images_without_a_mask_are_reported",
)
SEVERAL_PUBLISHERS = Degradation(
    "Several nodes publish one camera topic",
    *("full", WARN, "{names} publish the same camera topic, and their images mix: remap all but one of them"),
    "when one is left",
    "tests/faults/test_camera_faults.py::test_two_publishers_are_named",
)
LOST_IMAGES = Degradation(
    "Images are lost in the transport",
    *("full", WARN, "{advice}"),
    "2 s after the last loss",
    "tests/ros/monitoring/test_health.py::test_losses_are_reported_with_a_remedy",
)
NO_IMAGES_YET = Degradation(
    "No image has come since activation",
    *("no masks", WARN, "no images yet"),
    "with the first image",
    "tests/ros/monitoring/test_health.py::test_levels",
)
SILENCE = Degradation(
    "The camera is silent for 2 s, also with a simulated clock that stands still",
    *("no masks", WARN, "no images for {seconds:.1f} s"),
    _AT_ONCE,
    "tests/faults/test_camera_faults.py::test_silence_is_a_warning_and_ends_with_the_next_image",
)
CLOCK_STOPPED = Degradation(
    "The node's simulated clock stands still for 5 s while images arrive",
    *("full", WARN, "the node's clock has stood still for {seconds:.0f} s: check use_sim_time and /clock"),
    "when the clock runs",
    "tests/faults/test_clock_faults.py::test_a_clock_that_stands_still_is_a_warning",
)
SIZES_ALTERNATE = Degradation(
    "Images of many sizes come on one topic",
    "full",
    WARN,
    "images of {sizes} sizes alternate, and the engines were prepared {preparations} times in the last minute: give "
    "each camera a topic of its own, or let the camera keep one size",
    "a minute after the sizes settle",
    "tests/ros/monitoring/test_health.py::test_sizes_that_alternate_are_reported",
)
FUTURE_STAMPS = Degradation(
    "Images are stamped in the future",
    *("full", WARN, "images are stamped in the future: check the camera's clock and use_sim_time"),
    "with the next images",
    "tests/faults/test_camera_faults.py::test_wrong_stamps_are_a_warning",
)
PAST_STAMPS = Degradation(
    "Images are stamped hours in the past, for example in 1970; not judged if `warn_age_ms` is 0",
    "full",
    WARN,
    "images are stamped {hours:.0f} hours in the past: the camera does not set the stamp, its clock is wrong, or a bag "
    "is played without use_sim_time",
    "with the next images",
    "tests/faults/test_camera_faults.py::test_wrong_stamps_are_a_warning",
)
OLD_MASKS = Degradation(
    "Masks are older than `warn_age_ms`",
    *("full", WARN, "masks are {age_ms:.0f} ms old when they are published; warn_age_ms is {limit:g}"),
    "when masks are younger",
    "tests/ros/monitoring/test_health.py::test_stamps_that_are_wrong_or_old_are_reported",
)
DROPS = Degradation(
    "More images are dropped than `warn_drop_percent`",
    *("full", WARN, "{percent:.0f} % of the images dropped; warn_drop_percent is {limit:g}"),
    "within 5 s",
    "tests/ros/monitoring/test_health.py::test_a_high_share_of_dropped_images_is_reported",
)
LOW_RATE = Degradation(
    "Fewer masks come than `warn_rate_hz`, though images come often enough",
    *("full", WARN, "{rate_hz:.2f} masks per second; warn_rate_hz is {limit:g}"),
    "within 5 s",
    "tests/ros/monitoring/test_health.py::test_a_low_rate_is_reported_if_the_camera_is_faster",
)
NAMESAKES = Degradation(
    "Several nodes have the node's name",
    *("full", WARN, "{number} nodes have the name {name}: rename one"),
    "when one is left; one that was killed counts for up to 20 s",
    "tests/faults/test_service_faults.py::test_a_second_node_of_the_name_is_a_warning_while_it_lives",
)
LOADING_FAILED = Degradation(
    "The engines cannot be loaded, after configure has ended",
    *("stopped", ERROR, "the engines could not be loaded: {reason}; cleanup, then configure again"),
    "cleanup, then configure; with `autostart` the process ends with status 1, and `respawn` starts it again",
    "tests/faults/test_service_faults.py::test_engines_that_cannot_be_loaded_are_an_error_until_cleanup",
)
TRANSITION_FAILED = Degradation(
    "A transition fails: a bundle is damaged, beyond the limits, or breaks the contract",
    *("stopped", ERROR, "{transition} failed: {reason}"),
    "the node stays unconfigured: correct what the reason names, and configure again",
    "tests/faults/test_service_faults.py::test_a_bad_bundle_leaves_the_node_unconfigured_until_it_is_corrected",
)
ACTIVATION_FAILED = Degradation(
    "Activation fails: the middleware refuses a subscription",
    *("no masks", ERROR, "{failure}"),
    "the node stays inactive: correct what the message names, and activate again",
    "tests/ros/test_lifecycle.py::test_a_failed_activation_is_an_error_in_diagnostics_until_it_succeeds",
)
TRANSITION_TIMED_OUT = Degradation(
    "An engine hangs, and the node is to be deactivated or to end",
    *("stopped", ERROR, "{transition} failed: TimeoutError: {reason}"),
    "configure again, with new engines; a process that is to end does so with status 1, and `respawn` starts it again",
    "tests/faults/test_process_faults.py::test_a_signal_ends_the_node_although_an_engine_hangs",
)
KILLED = Degradation(
    "The process is killed; its next start logs this",
    *("stopped", WARN, "deleted {megabytes:.0f} MB of shared memory of processes that have ended"),
    "the next start, for which `respawn` in the launch file cares",
    "tests/faults/test_process_faults.py::test_a_killed_node_starts_again_and_reclaims_its_memory",
)
#: In the order of the page.
DEGRADATIONS = tuple(value for value in list(globals().values()) if isinstance(value, Degradation))
