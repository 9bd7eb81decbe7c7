# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint to a bundle: three ONNX networks and their manifest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nightlab_core.export.parity import Parity, check_parity
from nightlab_core.files import named_errors
from nightlab_core.models.checkpoint import ModelCard, WeightStorage, load_checkpoint, manifest_of
from nightlab_core.models.deform import DeformConv2d, DeformForm
from nightlab_core.models.engine import torch_engines
from nightlab_core.models.nightlab import NightLab, NightLabSettings
from nightlab_core.runtime.bundle import Manifest, write_manifest

Axes = dict[str, dict[int, str]]  #: by tensor: its free sizes
OPSET = 20  #: the first with GridSample over any rank that also has DeformConv


class _Method(nn.Module):
    """A method of NightLab as a module, which tracing needs."""

    def __init__(self, model: NightLab, method: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.method(*inputs)


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    frames: Sequence[np.ndarray],
    *,
    deform: DeformForm = "deform_conv",
    weights: WeightStorage = "float16",
) -> list[Parity]:
    """Write the bundle of a checkpoint, and compare each of its networks with torch on frames uint8 (H, W, 3) BGR.

    Args:
        checkpoint: file of a whole NightLab.
        folder: folder of the bundle.
        frames: camera frames of any size.
        deform: ONNX form of deformable convolutions.
        weights: type in which weights are stored; computation is float32 in both.

    Raises ValueError for another file, OSError if a file cannot be read or written.
    """
    model, settings, card = load_checkpoint(checkpoint)
    export_bundle(model, settings, card, folder, deform=deform, weights=weights)
    return check_parity(torch_engines(model, settings, card), folder, frames)


def export_bundle(
    model: NightLab,
    settings: NightLabSettings,
    card: ModelCard,
    folder: Path,
    *,
    deform: DeformForm = "deform_conv",
    weights: WeightStorage = "float16",
) -> Manifest:
    """Write a bundle and return its manifest.

    With float16 weights the model's weights are rounded in place, so that model and bundle stay equal.
    """
    manifest = manifest_of(model, settings, card, deform=deform, weights=weights)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    if weights == "float16":
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, DeformConv2d)):
                module.weight.data = module.weight.data.half().float()
    frame = torch.zeros(1, *card.input_hw, 3, dtype=torch.uint8)
    region = manifest.engines.region
    shapes = region.input_shapes(2, settings.region_hw, len(settings.classes))
    crops = tuple(torch.zeros(shape, dtype=torch.uint8) for shape in shapes.values())
    free, small, batch = {1: "height", 2: "width"}, {1: "rows", 2: "columns"}, {0: "regions"}
    model.set_deform_form(deform)
    axes: Axes = {"labels": free, "confidence": free} | ({"probabilities": small} if region.context else {})
    _write(_Method(model, model.image_level), (frame,), folder / "image.onnx", {"frame": free}, axes, weights)
    axes = {"boxes": {}, "scores": {}}
    _write(_Method(model, model.hardness), (frame,), folder / "hardness.onnx", {"frame": free}, axes, weights)
    crop, context = (batch | sides if card.further_hw else batch for sides in (free, small))
    inputs: Axes = {"crops": crop, "context": context} if region.context else {"crops": crop}
    axes = {"labels": crop, "confidence": crop}
    _write(_Method(model, model.region_level), crops, folder / "region.onnx", inputs, axes, weights)

    return write_manifest(folder, manifest)


def _write(
    module: nn.Module, examples: tuple[Tensor, ...], path: Path, inputs: Axes, outputs: Axes, weights: WeightStorage
) -> None:
    """Export one network, with the names of its inputs and outputs in order, and the free sizes of each."""
    torch.onnx.register_custom_op_symbolic("torchvision::deform_conv2d", _deform_conv_symbol, OPSET)
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of every shape that becomes a number; the parity check at other sizes finds real faults.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            examples,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**inputs, **outputs},
            opset_version=OPSET,
            dynamo=False,
            # Keep normalisation as a node, so that the rounded weights are the model's; engines fold it.
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    graph = onnx.load(path)
    if weights == "float16":
        store_half(graph)
    onnx.checker.check_model(graph, full_check=True)
    with named_errors(path):
        onnx.save(graph, path)


def _deform_conv_symbol(g: Any, x: Any, weight: Any, offset: Any, mask: Any, bias: Any, *rest: Any) -> Any:
    """Convert torchvision::deform_conv2d with its stride, padding, dilation and groups to ONNX DeformConv."""
    from torch.onnx import symbolic_helper as sh

    numbers = [sh._get_const(value, "i", "") for value in rest[:8]]
    stride, pad, dilation, (group, offset_group) = numbers[0:2], numbers[2:4], numbers[4:6], numbers[6:8]
    return g.op(
        "DeformConv", x, weight, offset, bias, strides_i=stride, pads_i=[*pad, *pad], dilations_i=dilation,
        group_i=group, offset_group_i=offset_group, kernel_shape_i=sh._get_tensor_sizes(weight)[2:],
    ).setType(x.type().with_sizes([None, sh._get_tensor_sizes(weight)[0], None, None]))  # fmt: skip


def store_half(model: onnx.ModelProto, min_size: int = 256) -> None:
    """Store the large float32 constants of a graph as float16, each followed by a cast, in place.

    Computation stays float32: engines fold the casts when they load the graph. A constant that float16 does not
    represent exactly stays float32.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):  # values that overflow stay float32
            half = values.astype(np.float16)
        if values.size < min_size or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for cast_node in reversed(casts):
        graph.node.insert(0, cast_node)
