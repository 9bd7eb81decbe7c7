# SPDX-License-Identifier: Apache-2.0
"""Map a segmenter's channels to classes: all classes of a set, or some of them and "other"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nightlab_core.labels import IGNORE_ID, ClassSet

OTHER = "other"  #: every class that a region level does not tell apart; its pixels stay the image level's


@dataclass(frozen=True)
class OutputLabels:
    """The label of every channel, in order: a class id, or 255 for the last one where it is "other"."""

    ids: tuple[int, ...]
    classes: ClassSet
    #: Groups of class ids among which an ambiguous training label does not decide; label len(classes) + k is the k-th.
    groups: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, classes: ClassSet, names: Sequence[str] = (), groups: Sequence[tuple[int, ...]] = ()) -> OutputLabels:
        """Make the channels of all classes, or, given names of some, of those in that order and then "other".

        groups: of `labels.ambiguous_groups`. Raises KeyError for an unknown name and ValueError for one that
        appears twice or is "other".
        """
        if len(set(names)) != len(names):
            raise ValueError(f"received the classes {', '.join(names)}; expected each name once")
        if OTHER in names:
            raise ValueError(f"received {OTHER!r} among the region level's classes, where it stands for all others")
        ids = (*classes.ids_of(names), IGNORE_ID) if names else tuple(range(len(classes)))
        return cls(ids, classes, tuple(groups))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The class of every channel."""
        return tuple(OTHER if i == IGNORE_ID else self.classes.names[i] for i in self.ids)

    @cached_property
    def _channels(self) -> dict[int, tuple[int, ...]]:
        """Training label, a class id or that of a group, -> the channels that it may mean."""
        channel = {class_id: c for c, class_id in enumerate(self.ids)}
        other = channel.get(IGNORE_ID)
        labels = [*((i,) for i in range(len(self.classes))), *self.groups]
        found = ({channel.get(member, other) for member in members} for members in labels)
        return {label: tuple(sorted(c for c in each if c is not None)) for label, each in enumerate(found)}

    @cached_property
    def ambiguous(self) -> tuple[tuple[int, ...], ...]:
        """Groups of two or more channels among which some training label does not decide.

        A target of len(self) + k means the k-th of them. A group may hold "other": the label then rules out the
        remaining channels.
        """
        return tuple(dict.fromkeys(channels for channels in self._channels.values() if len(channels) > 1))

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """A table of 256: training label -> channel, or len(self) + k for the k-th of `ambiguous`, or 255."""
        table = [IGNORE_ID] * 256
        for label, channels in self._channels.items():
            table[label] = channels[0] if len(channels) == 1 else len(self) + self.ambiguous.index(channels)
        return tuple(table)
