# SPDX-License-Identifier: Apache-2.0
"""Segment an image with a network of segmentation-models-pytorch.

Any segmentation network can be used at either level (WO 2023/146470, paragraph 33).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nightlab_core.models.segmenter import check_size


class LibrarySegmenter(nn.Module):
    """Image (B, 3, H, W) RGB float in 0..1 -> logits (B, num_classes, H, W).

    Args:
        model: a model of segmentation-models-pytorch, for example "Unet" or "Segformer".
        backbone: an encoder of that library, for example "mobilenet_v2", or "tu-" and a timm model's name.
        num_classes: channels of the logits.

    Raises ModuleNotFoundError if the library is not installed, ValueError or KeyError for an unknown name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, backbone: str, num_classes: int) -> None:
        super().__init__()
        try:
            import segmentation_models_pytorch as smp
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("this model comes with: pip install segmentation-models-pytorch") from error
        self.backbone_name = backbone
        self.net = smp.create_model(model, backbone, encoder_weights=None, classes=num_classes)
        self.multiple = int(self.net.encoder.output_stride)
        for key, value in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(key, torch.tensor(value).reshape(1, 3, 1, 1), persistent=False)

    def load_pretrained(self) -> None:
        """Load the library's ImageNet weights into the encoder. Raises OSError if its hub cannot be reached."""
        import segmentation_models_pytorch as smp

        try:
            encoder = smp.encoders.get_encoder(self.backbone_name, weights="imagenet")
        except Exception as error:  # what a hub's client raises changes with its release
            raise OSError(
                f"ImageNet weights of {self.backbone_name} did not come from the hub of segmentation-models-pytorch"
                f" ({type(error).__name__}: {error}); start from a checkpoint (start_from) where it cannot be reached"
            ) from error
        self.net.encoder.load_state_dict(encoder.state_dict())

    def forward(self, image: Tensor) -> Tensor:
        check_size(image, self.multiple)
        return self.net((image - self.mean) / self.std)
