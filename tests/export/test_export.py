# SPDX-License-Identifier: Apache-2.0
"""Checkpoint to bundle: the contract, parity with torch at several sizes, half-precision storage, the command."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pipelines import open_pipeline

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnxruntime import InferenceSession  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.data.rendered import night  # noqa: E402
from nightlab_core.export import parity  # noqa: E402
from nightlab_core.export.export import export_bundle, export_checkpoint  # noqa: E402
from nightlab_core.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint  # noqa: E402
from nightlab_core.models.engine import torch_engines  # noqa: E402
from nightlab_core.models.nightlab import DetectorSettings, NightLab, NightLabSettings, SegmenterSettings  # noqa: E402
from nightlab_core.runtime.bundle import load_bundle  # noqa: E402
from nightlab_core.runtime.engines.engine import EngineOptions  # noqa: E402
from nightlab_core.runtime.engines.open import Engines  # noqa: E402
from nightlab_core.runtime.engines.tensorrt.graphs import tensorrt_graph  # noqa: E402
from nightlab_core.runtime.pipeline import Pipeline  # noqa: E402

LIBRARIES = ("openvino", "onnxruntime")

SETTINGS = NightLabSettings(
    segmenter=SegmenterSettings(channels=16, stages=5, strides=(8, 16)),
    detector=DetectorSettings(channels=16, max_boxes=40),
    region_hw=(96, 96),
)
CARD = ModelCard(
    name="random",
    hard_classes=("pole", "person"),
    trained_on=("nothing",),
    licence="none",
    input_hw=(192, 256),
    hardness_hw=(128, 192),
    further_hw=((64, 64),),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights that give offsets of pixels, a light map and high confidence."""
    torch.manual_seed(0)
    model = SETTINGS.build()
    for name, parameter in model.named_parameters():
        if "offset" in name or "relam.light" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "classifier" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0)
    path = tmp_path_factory.mktemp("checkpoint") / "random.pt"
    save_checkpoint(path, model, SETTINGS, CARD)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> NightLab:
    return load_checkpoint(checkpoint)[0]


@pytest.fixture(scope="module")
def bundle_dir(model: NightLab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the model in the default forms: deform_conv, weights in float16."""
    folder = tmp_path_factory.mktemp("bundle")
    export_bundle(model, SETTINGS, CARD, folder)
    return folder


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A 4:3, a 16:9 and a tall frame."""
    return [
        night.render_scene(i, size_hw=size).image_bgr for i, size in enumerate([(240, 320), (270, 480), (320, 240)])
    ]


def test_engines_agree_with_torch_at_several_sizes(model: NightLab, bundle_dir: Path, frames: list[np.ndarray]) -> None:
    operators = {node.op_type for node in onnx.load(bundle_dir / "image.onnx").graph.node}
    assert "DeformConv" in operators and "GridSample" not in operators
    rows = parity.check_parity(torch_engines(model, SETTINGS, CARD), bundle_dir, frames)
    networks = ("image", "hardness", "region 64x64", "region 96x96")
    assert {(r.network, r.library) for r in rows} == {(n, library) for n in networks for library in LIBRARIES}
    assert all(r.passed for r in rows), rows


def test_the_grid_sample_form_agrees_with_torch(model: NightLab, frames: list[np.ndarray], tmp_path: Path) -> None:
    export_bundle(model, SETTINGS, CARD, tmp_path, deform="grid_sample")
    operators = {node.op_type for node in onnx.load(tmp_path / "image.onnx").graph.node}
    assert "GridSample" in operators and "DeformConv" not in operators
    rows = parity.check_parity(torch_engines(model, SETTINGS, CARD), tmp_path, frames[1:2])
    assert all(r.passed for r in rows), rows


def test_the_graph_for_tensorrt_reads_crops_of_every_size(bundle_dir: Path) -> None:
    path = bundle_dir / "region.onnx"
    graph = tensorrt_graph(onnx.load(path), "float32", {"crops": (-1, -1, -1, 3)})
    sessions = [InferenceSession(m.SerializeToString()) for m in (onnx.load(path), graph)]
    for side in (64, 96):
        crops = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
        expected, received = (session.run(None, {"crops": crops}) for session in sessions)
        assert parity.compare_labels([expected], [received])[0] > 0.999


def test_parity_detects_a_wrong_network(bundle_dir: Path, frames: list[np.ndarray]) -> None:
    other = torch_engines(SETTINGS.build(), SETTINGS, CARD)
    assert not any(r.passed for r in parity.check_parity(other, bundle_dir, frames[:1], ["onnxruntime"]))


def test_a_checkpoint_keeps_normalisations_in_float32(tmp_path: Path) -> None:
    """In float16 a variance below 3e-8 is 0 and one above 65504 infinite: its channel would be scaled wrongly."""
    model = SETTINGS.build()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.copy_(torch.logspace(-9, 6, len(module.running_var)))
    save_checkpoint(tmp_path / "x.pt", model, SETTINGS, CARD)
    loaded = load_checkpoint(tmp_path / "x.pt")[0].state_dict()
    for key, value in model.state_dict().items():
        kept = value.half().float() if value.is_floating_point() and value.dim() > 1 else value
        assert torch.equal(loaded[key], kept), key


def test_half_precision_storage_halves_the_files_and_changes_nothing(
    model: NightLab, bundle_dir: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    export_bundle(model, SETTINGS, CARD, tmp_path, weights="float32")
    half, full = ((folder / "image.onnx").stat().st_size for folder in (bundle_dir, tmp_path))
    assert half < 0.6 * full
    outputs = []
    for folder in (bundle_dir, tmp_path):
        with open_pipeline(folder, engine="onnxruntime") as pipeline:
            outputs.append(pipeline(frames[0]))
    assert (outputs[0].image_labels == outputs[1].image_labels).mean() > 0.9999


def test_the_manifest_has_the_card_s_content(bundle_dir: Path) -> None:
    manifest = load_bundle(bundle_dir).manifest
    assert manifest.name == "random" and manifest.hard_classes == ("pole", "person")
    assert manifest.engines.image.input_hw == (192, 256) and manifest.engines.image.multiple == 16
    assert manifest.engines.hardness.input_hw == (128, 192)
    assert manifest.engines.region.sizes_hw == ((64, 64), (96, 96)) and manifest.engines.region.multiple == 16
    assert manifest.weights == "float16"


def test_crops_of_one_size_are_fixed_in_the_graph(model: NightLab, tmp_path: Path) -> None:
    export_bundle(model, SETTINGS, replace(CARD, further_hw=()), tmp_path)
    with Engines.open(tmp_path, EngineOptions(calibration_s=0)) as engines:
        assert engines.region.inputs["crops"].shape == (None, 96, 96, 3)
        assert engines.region_sizes_hw == ((96, 96),)


def test_a_size_of_crops_that_the_network_cannot_read_is_refused(model: NightLab, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not a multiple of 16"):
        export_bundle(model, SETTINGS, replace(CARD, further_hw=((72, 72),)), tmp_path)


def test_the_pipeline_agrees_with_the_pipeline_in_torch(model: NightLab, bundle_dir: Path) -> None:
    frame = night.render_scene(3, size_hw=(192, 256)).image_bgr
    with open_pipeline(bundle_dir, precision="float32") as pipeline:
        result = pipeline(frame)
    with Pipeline(torch_engines(model, SETTINGS, CARD)) as reference:
        expected = reference(frame)
    assert reference.engines.name == "torch" and reference.bundle.manifest.engines.region.input_hw == (96, 96)
    assert result.refined.any()
    assert (result.labels == expected.labels).mean() > 0.995
    assert np.abs(result.confidence.astype(int) - expected.confidence).mean() < 0.5


@pytest.mark.slow
def test_a_network_of_another_library_runs_from_settings_to_vehicle(frames: list[np.ndarray], tmp_path: Path) -> None:
    """A network of segmentation-models-pytorch at both levels, with other classes in regions."""
    pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(2)
    network = SegmenterSettings(architecture="library", library_model="FPN", backbone="mobilenet_v2")
    settings = replace(SETTINGS, segmenter=network, region_classes=("pole", "person", "car"))
    model = settings.build()
    for level in (model.image, model.region):
        torch.nn.init.normal_(level.segmenter.net.segmentation_head[0].weight, std=1.0)
    save_checkpoint(tmp_path / "library.pt", model, settings, CARD)
    model, settings, card = load_checkpoint(tmp_path / "library.pt")
    assert settings.segmenter == network and len(settings.region_classes) == 3
    export_bundle(model, settings, card, tmp_path / "bundle")
    rows = parity.check_parity(torch_engines(model, settings, card), tmp_path / "bundle", frames[:2])
    assert all(r.passed for r in rows), rows
    with open_pipeline(tmp_path / "bundle", precision="float32") as pipeline:
        frame = night.render_scene(3, size_hw=(192, 256)).image_bgr
        result = pipeline(frame)
    with Pipeline(torch_engines(model, settings, card)) as reference:
        labels = reference(frame).labels
    assert result.labels.shape == (192, 256) and result.refined.any()
    assert set(np.unique(result.labels[result.labels != result.image_labels])) <= {5, 11, 13}
    assert (result.labels == labels).mean() > 0.995


def test_a_region_level_with_the_class_other_agrees_with_torch(frames: list[np.ndarray], tmp_path: Path) -> None:
    torch.manual_seed(6)  # a random network that gives all three labels
    settings = replace(SETTINGS, region_classes=("pole", "person"))
    model = settings.build()
    torch.nn.init.normal_(model.region.segmenter.head.classifier[-1].weight, std=1.0)
    export_bundle(model, settings, CARD, tmp_path)
    rows = parity.check_parity(torch_engines(model, settings, CARD), tmp_path, frames[:1], ["onnxruntime"])
    assert all(r.passed for r in rows), rows
    crops = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    assert set(np.unique(model.region_level(torch.from_numpy(crops))[0])) == {5, 11, 255}


def test_a_checkpoint_carries_its_configuration(checkpoint: Path) -> None:
    model, settings, card = load_checkpoint(checkpoint)
    assert settings == SETTINGS and card == CARD
    assert not model.training and next(model.parameters()).dtype == torch.float32


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a NightLab checkpoint"):
        load_checkpoint(tmp_path / "x.pt")


def test_frames_are_spread_over_the_folder_and_missing_ones_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no image"):
        parity.read_frames(tmp_path, 3)
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 4, 3), i, np.uint8))
    assert [int(f[0, 0, 0]) for f in parity.read_frames(tmp_path, 3)] == [0, 2, 4]


def test_exporting_a_checkpoint_compares_its_networks_with_torch(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [night.render_scene(0, size_hw=(192, 256)).image_bgr]
    rows = export_checkpoint(checkpoint, tmp_path, frames)
    assert parity.print_parity(rows)
    shown = capsys.readouterr().out
    assert "openvino" in shown and "onnxruntime" in shown and "FAILED" not in shown
    assert load_bundle(tmp_path).manifest.name == "random"


def test_failure_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    row = parity.Parity("image", "openvino", 1, 0.998, 3)
    assert not parity.print_parity([row])
    assert "FAILED" in capsys.readouterr().out
