# SPDX-License-Identifier: Apache-2.0
"""What the channels of a segmenter stand for: all classes, or some of them and "other"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nightlab_core.labels import CITYSCAPES19, IGNORE_ID, OPEN_LABELS

OTHER = "other"  #: every class that a region level does not tell apart; its pixels stay the image level's


@dataclass(frozen=True)
class OutputLabels:
    """The label of every channel, in order: a Cityscapes train id, or 255 for the last one where it is "other"."""

    ids: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str] = ()) -> OutputLabels:
        """All 19 classes, or, given names of some, those in that order and then "other".

        Raises KeyError for an unknown name and ValueError for one that is there twice.
        """
        if len(set(names)) != len(names):
            raise ValueError(f"classes {', '.join(names)}: expected each name once")
        if not names:
            return cls(tuple(range(len(CITYSCAPES19))))
        return cls((*(CITYSCAPES19.id_of(name) for name in names), IGNORE_ID))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The class of every channel."""
        return tuple(OTHER if i == IGNORE_ID else CITYSCAPES19.names[i] for i in self.ids)

    @cached_property
    def _meant(self) -> dict[int, tuple[int, ...]]:
        """Training label, a train id or one of `labels.OPEN_LABELS`, -> the channels that it leaves open."""
        channel = {train_id: c for c, train_id in enumerate(self.ids)}
        other = channel.get(IGNORE_ID)
        meant = {}
        for label in (*range(len(CITYSCAPES19)), *OPEN_LABELS):
            channels = {channel.get(member, other) for member in OPEN_LABELS.get(label, (label,))}
            meant[label] = tuple(sorted(c for c in channels if c is not None))
        return meant

    @cached_property
    def opened(self) -> tuple[tuple[int, ...], ...]:
        """Groups of two or more channels between which some training label does not choose.

        A target of len(self) + k means the k-th of them. One that holds "other" is of use too: CamVid's building may be
        a wall, but no pole.
        """
        return tuple(dict.fromkeys(channels for channels in self._meant.values() if len(channels) > 1))

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """A table of 256: training label -> channel, or len(self) + k for the k-th of `opened`, or 255."""
        table = [IGNORE_ID] * 256
        for label, channels in self._meant.items():
            table[label] = channels[0] if len(channels) == 1 else len(self) + self.opened.index(channels)
        return tuple(table)
