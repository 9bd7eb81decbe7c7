# SPDX-License-Identifier: Apache-2.0
"""Torch networks behind the Engine protocol: the contract, batches of crops, closing, checkpoints."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nightlab_core.models.checkpoint import ModelCard, save_checkpoint  # noqa: E402
from nightlab_core.models.engine import TorchEngine, open_checkpoint, torch_engines  # noqa: E402
from nightlab_core.models.nightlab import DetectorSettings, NightLab, NightLabSettings, SegmenterSettings  # noqa: E402
from nightlab_core.runtime.pipeline import Pipeline, PipelineSettings  # noqa: E402

SETTINGS = NightLabSettings(
    segmenter=SegmenterSettings(channels=16), detector=DetectorSettings(channels=16, max_boxes=40), region_hw=(64, 96)
)
CARD = ModelCard(name="tiny", hard_classes=("pole",), trained_on=(), licence="none", input_hw=(128, 192))


@pytest.fixture(scope="module")
def model() -> NightLab:
    torch.manual_seed(0)
    return SETTINGS.build().eval()


def random_bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def test_a_pipeline_runs_on_a_torch_model(model: NightLab) -> None:
    frame = random_bytes(128, 192)
    with torch_engines(model, SETTINGS, CARD) as engines, Pipeline(engines) as pipeline:  # checks the contract
        result = pipeline(frame)
        assert engines.name == "torch" and engines.bundle.class_set.names[5] == "pole"
    assert result.labels.shape == (128, 192) and result.labels.max() < 19 and result.refined.any()
    with torch.inference_mode():
        expected, _ = model.image_level(torch.from_numpy(frame)[None])
    np.testing.assert_array_equal(result.image_labels, expected[0].numpy())


def test_engines_open_from_a_checkpoint(model: NightLab, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "tiny.pt", model, SETTINGS, CARD)
    frame = random_bytes(96, 128)
    with open_checkpoint(tmp_path / "tiny.pt") as engines, Pipeline(engines) as pipeline:
        assert pipeline(frame).labels.shape == (96, 128)
        assert engines.bundle.manifest.name == "tiny" and engines.bundle.hard_class_ids == (5,)


def test_crops_are_processed_in_small_batches(model: NightLab) -> None:
    sizes = []

    def network(crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(crops))
        return model.region_level(crops)

    crops = random_bytes(9, 64, 96)
    engine = TorchEngine("region", network, crop_hw=(64, 96), crops_at_once=4)
    output = engine(crops=crops)
    assert sizes == [4, 4, 1] and output["labels"].shape == (9, 64, 96)
    whole = TorchEngine("region", network, crop_hw=(64, 96), crops_at_once=9)(crops=crops)
    assert (output["labels"] == whole["labels"]).mean() > 0.999


def test_inputs_that_do_not_fit_are_refused(model: NightLab) -> None:
    engine = torch_engines(model, SETTINGS, CARD).region
    with pytest.raises(ValueError, match=r"received uint8 \(1, 32, 32, 3\), expected uint8 \(\?, 64, 96, 3\)"):
        engine(crops=random_bytes(1, 32, 32))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine(crops=random_bytes(1, 64, 96))


def test_the_image_level_runs_alone(model: NightLab) -> None:
    settings = PipelineSettings(refine="never")
    with torch_engines(model, SETTINGS, CARD) as engines, Pipeline(engines, settings) as pipeline:
        result = pipeline(random_bytes(128, 192))
    np.testing.assert_array_equal(result.labels, result.image_labels)


def test_pixels_of_class_other_keep_the_label_of_the_image_level() -> None:
    torch.manual_seed(0)
    settings = SETTINGS.model_copy(update={"region_classes": ("person", "pole")})
    model = settings.build()
    torch.nn.init.constant_(model.region.segmenter.head.classifier[-1].bias[2:], 99.0)
    with torch_engines(model, settings, CARD) as engines, Pipeline(engines) as pipeline:
        result = pipeline(random_bytes(128, 192))
    assert result.refined.any()
    np.testing.assert_array_equal(result.labels, result.image_labels)
