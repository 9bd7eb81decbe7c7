# SPDX-License-Identifier: Apache-2.0
"""The text behind the demo's progress line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nightlab_ros.mask_recorder import MASK, MaskRecorder
from nightlab_ros.playback import SentFrame


def playback_state(sent: Sequence[SentFrame], recorder: MaskRecorder) -> str:
    """Return masks, drops, rate and latency so far. A frame counts as dropped once a later frame's mask is here."""
    masks = recorder.received[MASK]
    answered = [frame for frame in sent if frame.stamp_ns in masks]
    if not answered:
        return "no mask yet"
    dropped = sum(frame.index < answered[-1].index for frame in sent) - (len(answered) - 1)
    recent = [frame.stamp_ns for frame in answered[-20:]]
    rate = (len(recent) - 1) / max(1e-9, (recent[-1] - recent[0]) / 1e9) if len(recent) > 1 else 0.0
    latency_ms = np.median([masks[frame.stamp_ns][0].latency_ms for frame in answered])
    return f"masks {len(answered)}  dropped {dropped}  {rate:.1f} Hz  p50 {latency_ms:.0f} ms"
