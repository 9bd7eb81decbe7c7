# SPDX-License-Identifier: Apache-2.0
"""Detect hard regions: a region proposal network with one class-agnostic hardness score (NightLab, CVPR 2022).

The proposals are the paper's RDN. With the hardness module, which ranks them by the gain of the region level, they are
the paper's HDM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
    permute_and_flatten,
)

from nightlab_core.models.backbone import Backbone


class HardnessHead(nn.Module):
    """Score every anchor by the gain that the region level would bring there.

    Features [(B, Ci, H / si, W / si)], finest first, and objectness logits (B, anchors) -> logits (B, anchors) in the
    same order. Coarse features are added to fine ones, since a region's surroundings tell whether it is hard. The head
    starts from a fraction of the objectness, because its training set has a few thousand proposals only; dropout limits
    overfitting.
    """

    classifies: (
        Tensor  #: bool: the score classifies regions as helpful or not, and does not predict the size of the gain
    )

    def __init__(self, in_channels: Sequence[int], channels: int, anchors_per_place: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.tower = nn.Sequential(
            nn.Dropout2d(0.3), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True),
            nn.Dropout2d(0.3), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.logits = nn.Conv2d(channels, anchors_per_place, 1)
        self.trust = nn.Parameter(torch.tensor(0.3))
        # Stored in the checkpoint, because it depends on the training target and not on the architecture.
        self.register_buffer("classifies", torch.tensor(False))
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor], objectness: Tensor) -> Tensor:
        merged = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        return _by_anchor([self.logits(self.tower(m)) for m in merged]) + self.trust * objectness


def _by_anchor(maps: Sequence[Tensor]) -> Tensor:
    """Flatten maps [(B, A, h, w)] of all strides to (B, anchors), in the order of the anchors."""
    flat = [permute_and_flatten(m, m.shape[0], m.shape[1], 1, m.shape[2], m.shape[3]) for m in maps]
    return torch.cat(flat, 1)[..., 0]


class RegionDetector(nn.Module):
    """Find the regions that the image level segments badly: image (B, 3, H, W) RGB float in 0..1 -> boxes and scores.

    It reads the image at 1/`reduction` of its size, since finding a region needs less detail than segmenting it.
    Anchors, box coder, matching and losses are torchvision's.

    Args:
        backbone, strides, stages, pretrained: see `Backbone`.
        channels: width of the proposal head.
        anchor_sizes: sides of the anchors in pixels of the reduced image, one tuple per stride.
        aspect_ratios: height / width of the anchors.
        max_boxes: proposals returned, best first, before non-maximum suppression.
        hdm_channels: width of the hardness detection module, which ranks the proposals by the gain of the region level
            (the paper's HDM); 0: no module, proposals are ranked by objectness (the paper's RDN).
    """

    def __init__(
        self,
        backbone: str,
        channels: int = 64,
        strides: Sequence[int] = (8, 16),
        anchor_sizes: Sequence[Sequence[int]] = ((16, 32), (64, 128)),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
        *,
        stages: int = 0,
        reduction: int = 2,
        max_boxes: int = 100,
        hdm_channels: int = 0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if len(strides) != len(anchor_sizes):
            raise ValueError(f"{len(strides)} strides but {len(anchor_sizes)} groups of anchor sizes; expected as many")
        self.backbone = Backbone(backbone, strides, stages=stages, pretrained=pretrained)
        self.reduction, self.max_boxes = reduction, max_boxes
        self.multiple = reduction * max(strides)
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in self.backbone.channels)
        anchors = AnchorGenerator(tuple(map(tuple, anchor_sizes)), (tuple(aspect_ratios),) * len(strides))
        head = RPNHead(channels, anchors.num_anchors_per_location()[0])
        # Only its parts are used; the numbers of proposals and the suppression are for its own forward pass.
        self.rpn = RegionProposalNetwork(
            anchors, head, fg_iou_thresh=0.5, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
            pre_nms_top_n={}, post_nms_top_n={}, nms_thresh=0.5,
        )  # fmt: skip
        self.hdm = None
        if hdm_channels:
            self.hdm = HardnessHead(self.backbone.channels, hdm_channels, anchors.num_anchors_per_location()[0])

    def _features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The reduced image and the backbone's features of it."""
        small = F.avg_pool2d(image, self.reduction) if self.reduction > 1 else image
        return small, self.backbone(small)

    def _predict(self, small: Tensor, features: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Objectness (B * A, 1), deltas (B * A, 4), anchors [(A, 4)] * B in reduced pixels."""
        features = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        objectness, deltas = self.rpn.head(features)
        sizes = [(small.shape[-2], small.shape[-1])] * small.shape[0]
        # Anchors and boxes must be float32: in bfloat16 they would be off by pixels.
        anchors = self.rpn.anchor_generator(ImageList(small, sizes), [f.float() for f in features])
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        return objectness, deltas.float(), anchors

    def propose(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the proposals by objectness, best first.

        These are boxes (B, N, 4) and scores (B, N) as of `forward`, the anchor of each, int64 (B, N), and the
        backbone's features.
        """
        small, features = self._features(image)
        objectness, deltas, anchors = self._predict(small, features)
        batch = image.shape[0]
        boxes = self.rpn.box_coder.decode(deltas, anchors).reshape(batch, -1, 4)
        scores = objectness.float().reshape(batch, -1).sigmoid()  # in bfloat16 many scores would be equal
        height, width = small.shape[-2:]
        count = self.max_boxes if torch.jit.is_tracing() else min(self.max_boxes, scores.shape[1])
        scores, order = scores.topk(count, dim=1)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        # Divide each side by itself: tracing would fix a size that is put into a tensor.
        left, top, right, bottom = boxes.unbind(-1)
        boxes = torch.stack([left / width, top / height, right / width, bottom / height], -1).clamp(0, 1)
        return boxes, scores, order, features

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, N, 4) xyxy in 0..1 and hardness scores (B, N) in 0..1, best first, N at most `max_boxes`."""
        boxes, scores, order, features = self.propose(image)
        if self.hdm is not None:
            hardness = self.hardness_logits(features, order).sigmoid()
            if self.hdm.classifies:
                # A binary target ignores the size of the gain, so boxes that help come first, ordered by objectness,
                # and then the others.
                hardness = ((hardness >= 0.5).to(scores.dtype) + scores) / 2
            scores, place = hardness.topk(scores.shape[1], dim=1)
            boxes = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        return boxes, scores

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the backbone's features of an image, the input of `hardness_logits`."""
        return self._features(image)[1]

    def hardness_logits(self, features: list[Tensor], anchors: Tensor) -> Tensor:
        """Return the logits (B, N) of the hardness detection module for anchors int64 (B, N) from `propose`.

        Raises ValueError for a detector without the module.
        """
        if self.hdm is None:
            raise ValueError("this detector has no hardness detection module; expected hdm_channels above 0")
        objectness, _ = self.rpn.head([lateral(f) for lateral, f in zip(self.laterals, features, strict=True)])
        return self.hdm(features, _by_anchor(objectness)).gather(1, anchors)

    def loss(self, image: Tensor, boxes: list[Tensor], known: Tensor | None = None) -> dict[str, Tensor]:
        """Return the training losses against ground-truth boxes, one (n, 4) xyxy tensor per image, in image pixels.

        known: bool (B, H, W), True where the image is labelled; None: everywhere. An anchor mostly outside does not
        count as background. The losses are torchvision's `objectness` (binary cross-entropy) and `box` (smooth L1).
        """
        objectness, deltas, anchors = self._predict(*self._features(image))
        targets = [{"boxes": b / self.reduction} for b in boxes]
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        if known is not None:
            for own, places, mask in zip(labels, anchors, known, strict=True):
                own[(own == 0) & (_share_inside(mask, places * self.reduction) < 0.5)] = -1  # excluded from sampling
        if not any((own >= 0).any() for own in labels):  # the mean over no anchor is not finite
            return {"objectness": 0 * objectness.sum(), "box": 0 * deltas.sum()}
        regression = self.rpn.box_coder.encode(matched, anchors)
        loss_objectness, loss_box = self.rpn.compute_loss(objectness, deltas, labels, regression)
        return {"objectness": loss_objectness, "box": loss_box}


def _share_inside(mask: Tensor, boxes: Tensor) -> Tensor:
    """Return the fraction (N,) of each box (N, 4) xyxy, clipped to the image, that a mask bool (H, W) covers."""
    height, width = mask.shape
    sums = F.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    x0, x1 = boxes[:, ::2].round().long().clamp(0, width).unbind(1)
    y0, y1 = boxes[:, 1::2].round().long().clamp(0, height).unbind(1)
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return inside / ((x1 - x0) * (y1 - y0)).clamp(min=1)
