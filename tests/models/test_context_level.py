# SPDX-License-Identifier: Apache-2.0
"""The region level that reads the image level's probabilities: its start, its bounds, and its bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from pydantic import ValidationError  # noqa: E402

from nightlab_core.data.rendered import night  # noqa: E402
from nightlab_core.export.export import export_bundle  # noqa: E402
from nightlab_core.export.parity import check_parity  # noqa: E402
from nightlab_core.models.checkpoint import ModelCard  # noqa: E402
from nightlab_core.models.engine import torch_engines  # noqa: E402
from nightlab_core.models.nightlab import (  # noqa: E402
    ContextLevel,
    DetectorSettings,
    Level,
    NightLabSettings,
    SegmenterSettings,
    probabilities_of,
)

SETTINGS = NightLabSettings(
    segmenter=SegmenterSettings(channels=16, stages=5, strides=(4, 8, 16), detail_channels=8),
    detector=DetectorSettings(channels=16, max_boxes=20),
    relam=None,
    region_hw=(64, 64),
    region_context=True,
)
CLASSES = len(SETTINGS.classes)


def _context(seed: int, size_hw: tuple[int, int] = (16, 16)) -> torch.Tensor:
    return torch.randn(2, CLASSES, *size_hw, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(1)


@pytest.fixture(scope="module")
def level() -> ContextLevel:
    torch.manual_seed(0)
    built = SETTINGS.build_level("region")
    assert isinstance(built, ContextLevel)
    return built.eval()


@torch.inference_mode()
def test_it_starts_as_the_mean_of_both_levels(level: ContextLevel) -> None:
    image, context = torch.rand(2, 3, 64, 64), _context(1)
    own = Level.forward(level, image).softmax(1)
    torch.testing.assert_close(level(image, context).exp(), (own + context) / 2, atol=2e-4, rtol=0)


@torch.inference_mode()
def test_probabilities_of_another_size_are_resized(level: ContextLevel) -> None:
    image = torch.rand(2, 3, 64, 64)
    everywhere = torch.zeros(2, CLASSES, 8, 8)
    everywhere[:, 3] = 1
    found = level(image, everywhere).exp()
    assert found.shape == (2, CLASSES, 16, 16) and (found[:, 3] >= 0.5).all()


def test_no_class_is_impossible_so_that_every_loss_is_finite(level: ContextLevel) -> None:
    certain = torch.zeros(1, CLASSES, 16, 16)
    certain[:, 0] = 1
    with torch.inference_mode():
        found = level(torch.rand(1, 3, 64, 64), certain)
    assert torch.isfinite(found).all() and (found.exp().sum(1) < 1.01).all()


def test_probabilities_are_bytes_of_every_class() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25]))[None, :, None, None]
    assert probabilities_of(logits).tolist() == [[[[128, 64, 64]]]]


def test_a_region_level_of_some_classes_cannot_read_them() -> None:
    with pytest.raises(ValidationError, match="region_context needs a region level of all classes"):
        NightLabSettings(region_context=True, region_classes=("pole",))


@pytest.mark.parametrize("further_hw", [(), ((96, 96),)])
def test_engines_of_the_bundle_agree_with_torch(tmp_path: Path, further_hw: tuple[tuple[int, int], ...]) -> None:
    torch.manual_seed(0)
    model = SETTINGS.build()
    for name, parameter in model.named_parameters():
        if ("classifier" in name or "region.trust" in name or "region.prior" in name) and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    card = ModelCard(
        name="random", hard_classes=("pole",), trained_on=(), licence="", input_hw=(128, 192), further_hw=further_hw
    )
    manifest = export_bundle(model, SETTINGS, card, tmp_path)
    assert manifest.engines.region.context
    frames = [night.render_scene(i, size_hw=(120, 160 + 80 * i)).image_bgr for i in range(2)]
    rows = check_parity(torch_engines(model, SETTINGS, card), tmp_path, frames)
    assert all(row.passed and row.worst_confidence <= 2 for row in rows), rows
    assert np.unique([row.network for row in rows]).size == 3 + len(further_hw)
