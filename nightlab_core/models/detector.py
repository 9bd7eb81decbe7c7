# SPDX-License-Identifier: Apache-2.0
"""The region detector: a region proposal network with one class-agnostic hardness score (NightLab, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from nightlab_core.models.backbone import Backbone


class RegionDetector(nn.Module):
    """Where the image-level segmenter needs help: image (B, 3, H, W) RGB float in 0..1 -> boxes and scores.

    It reads the image at 1/`reduction` of its size, since finding a region takes less detail than segmenting it.
    The anchors, the box coder, the matching and the losses are torchvision's.

    Args:
        backbone, strides, stages, pretrained: see `Backbone`.
        channels: width of the proposal head.
        anchor_sizes: side of the anchors in pixels of the reduced image, one tuple a stride.
        aspect_ratios: height / width of the anchors: poles are tall, cars are wide.
        max_boxes: proposals returned, best first, before non-maximum suppression.
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
        # Only the parts are used; the four numbers of proposals and suppression are for its own forward pass.
        self.rpn = RegionProposalNetwork(
            anchors, head, fg_iou_thresh=0.5, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
            pre_nms_top_n={}, post_nms_top_n={}, nms_thresh=0.5,
        )  # fmt: skip

    def _predict(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Objectness (B * A, 1), deltas (B * A, 4), anchors [(A, 4)] * B in reduced pixels, the reduced image."""
        small = F.avg_pool2d(image, self.reduction) if self.reduction > 1 else image
        features = [lateral(f) for lateral, f in zip(self.laterals, self.backbone(small), strict=True)]
        objectness, deltas = self.rpn.head(features)
        sizes = [(small.shape[-2], small.shape[-1])] * small.shape[0]
        anchors = self.rpn.anchor_generator(ImageList(small, sizes), features)
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        return objectness, deltas, anchors, small

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, N, 4) xyxy in 0..1 and hardness scores (B, N) in 0..1, best first, N at most `max_boxes`."""
        objectness, deltas, anchors, small = self._predict(image)
        batch = image.shape[0]
        boxes = self.rpn.box_coder.decode(deltas, anchors).reshape(batch, -1, 4)
        scores = objectness.reshape(batch, -1).sigmoid()
        height, width = small.shape[-2:]
        count = self.max_boxes if torch.jit.is_tracing() else min(self.max_boxes, scores.shape[1])
        scores, order = scores.topk(count, dim=1)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        # Divided side by side: a size put into a constant tensor would be fixed by tracing.
        left, top, right, bottom = boxes.unbind(-1)
        boxes = torch.stack([left / width, top / height, right / width, bottom / height], -1).clamp(0, 1)
        return boxes, scores

    def loss(self, image: Tensor, boxes: list[Tensor]) -> dict[str, Tensor]:
        """Training losses of proposals against the true boxes, one (n, 4) xyxy tensor an image, in image pixels.

        Returns `objectness` (binary cross-entropy) and `box` (smooth L1), torchvision's own.
        """
        objectness, deltas, anchors, _ = self._predict(image)
        targets = [{"boxes": b / self.reduction} for b in boxes]
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        regression = self.rpn.box_coder.encode(matched, anchors)
        loss_objectness, loss_box = self.rpn.compute_loss(objectness, deltas, labels, regression)
        return {"objectness": loss_objectness, "box": loss_box}
