# SPDX-License-Identifier: Apache-2.0
"""Checkpoint to bundle.

    python -m nightlab_core.export.export CHECKPOINT BUNDLE --frames FOLDER

writes image.onnx, hardness.onnx, region.onnx and bundle.yaml, then holds every engine against torch on the frames.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import Field
from torch import Tensor, nn

from nightlab_core.config import Settings
from nightlab_core.export.parity import check_parity, print_parity, read_frames
from nightlab_core.files import atomic_path
from nightlab_core.models.deform import DeformConv2d, DeformForm
from nightlab_core.models.nightlab import NightLab, NightLabSettings
from nightlab_core.runtime.bundle import (
    Classes,
    EngineFile,
    EngineFiles,
    Manifest,
    RegionFile,
    write_manifest,
)

OPSET = 20  #: the first with GridSample over any rank that also has DeformConv
WeightStorage = Literal["float16", "float32"]


class ModelCard(Settings):
    """What a checkpoint says of itself and hands on to the bundle."""

    name: str
    hard_classes: tuple[str, ...]
    trained_on: tuple[str, ...]
    licence: str
    input_hw: tuple[int, int] = (480, 640)
    #: What `training.combine_checkpoints` added to the region level's logits; further training removes it.
    region_offsets: dict[str, float] = Field(default_factory=dict)


def save_checkpoint(path: Path, model: NightLab, settings: NightLabSettings, card: ModelCard) -> None:
    """Write a NightLab with its configuration, the weights of its convolutions and products in half precision.

    Biases and the normalisations' numbers stay float32: they take little room, and half turns a variance
    above 65504 into infinity and one below 3e-8 into 0. Raises ValueError where a number is not finite.
    """
    weights = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in model.state_dict().items()}
    if spoilt := [k for k, v in weights.items() if not torch.isfinite(v).all()]:
        raise ValueError(
            f"{spoilt[0]}, and {len(spoilt) - 1} more, hold numbers that are not finite, or not in half precision: a"
            " part of the network would be dead. Train the stage on from its checkpoint, which begins statistics anew"
        )
    state = {"settings": settings.model_dump(mode="json"), "card": card.model_dump(mode="json"), "weights": weights}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> tuple[NightLab, NightLabSettings, ModelCard]:
    """Read what `save_checkpoint` wrote: the model in evaluation mode, float32, its convolutions with half's values."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or set(state) != {"settings", "card", "weights"}:
        raise ValueError(f"{path} is not a NightLab checkpoint; expected one that training.combine_checkpoints wrote")
    settings = _revive(NightLabSettings, state["settings"])
    model = settings.build()
    model.load_state_dict(state["weights"])
    return model.eval(), settings, _revive(ModelCard, state["card"])


def _revive(cls: type[Any], data: dict[str, Any]) -> Any:
    return cls.model_validate(data, strict=False)


class _Method(nn.Module):
    """One method of NightLab as a module, which is what tracing needs."""

    def __init__(self, model: NightLab, method: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.method(x)


def export_bundle(
    model: NightLab,
    settings: NightLabSettings,
    card: ModelCard,
    folder: Path,
    *,
    deform: DeformForm = "deform_conv",
    weights: WeightStorage = "float16",
) -> Manifest:
    """Write a bundle. With float16 weights the model's own are rounded in place, so that it stays the reference."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    if weights == "float16":
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, DeformConv2d)):
                module.weight.data = module.weight.data.half().float()
    frame = torch.zeros(1, *card.input_hw, 3, dtype=torch.uint8)
    crops = torch.zeros(2, *settings.region_hw, 3, dtype=torch.uint8)
    free, batch = {1: "height", 2: "width"}, {0: "regions"}
    model.set_deform_form(deform)
    axes: dict[str, dict[int, str]] = {"frame": free, "labels": free, "confidence": free}
    _write(_Method(model, model.image_level), frame, folder / "image.onnx", axes, weights)
    axes = {"frame": free, "boxes": {}, "scores": {}}
    _write(_Method(model, model.hardness), frame, folder / "hardness.onnx", axes, weights)
    axes = {"crops": batch, "labels": batch, "confidence": batch}
    _write(_Method(model, model.region_level), crops, folder / "region.onnx", axes, weights)

    multiple = model.image.segmenter.multiple
    hardness_multiple = int(np.lcm(model.detector.multiple, multiple))
    manifest = Manifest(
        name=card.name,
        created=datetime.date.today().isoformat(),
        classes=Classes(
            names=settings.classes.names,
            colors_rgb=settings.classes.colors_rgb,
            key=settings.classes.key,
            mappings_to=settings.classes.mappings_to,
        ),
        hard_classes=card.hard_classes,
        engines=EngineFiles(
            image=EngineFile(file="image.onnx", input_hw=card.input_hw, multiple=multiple),
            hardness=EngineFile(file="hardness.onnx", input_hw=card.input_hw, multiple=hardness_multiple),
            region=RegionFile(file="region.onnx", input_hw=settings.region_hw, multiple=1, max_batch=10),
        ),
        preprocessing="inside the graphs: bytes to 0..1, BGR to RGB, light adaptation, mean and deviation",
        deform=deform,
        weights=weights,
        trained_on=card.trained_on,
        accuracy={},  # `training.evaluation.evaluate --record` measures it on the bundle itself
        licence=card.licence,
    )
    return write_manifest(folder, manifest)


def _write(
    module: nn.Module, example: Tensor, path: Path, axes: dict[str, dict[int, str]], weights: WeightStorage
) -> None:
    """Export one network. `axes` names its input and outputs, in order, and the sizes of each that are free."""
    names = list(axes)
    torch.onnx.register_custom_op_symbolic("torchvision::deform_conv2d", _deform_conv_symbol, OPSET)
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of every shape it turns to a number; the parity check at other sizes is what counts.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
            # Normalisation stays a node of its own, so that rounded weights are the model's; engines fold it.
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    graph = onnx.load(path)
    if weights == "float16":
        store_half(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def _deform_conv_symbol(g: Any, x: Any, weight: Any, offset: Any, mask: Any, bias: Any, *rest: Any) -> Any:
    """torchvision::deform_conv2d with stride, padding, dilation, groups, offset groups and use_mask as ONNX."""
    from torch.onnx import symbolic_helper as sh

    numbers = [sh._get_const(value, "i", "") for value in rest[:8]]
    stride, pad, dilation, (group, offset_group) = numbers[0:2], numbers[2:4], numbers[4:6], numbers[6:8]
    return g.op(
        "DeformConv", x, weight, offset, bias, strides_i=stride, pads_i=[*pad, *pad], dilations_i=dilation,
        group_i=group, offset_group_i=offset_group, kernel_shape_i=sh._get_tensor_sizes(weight)[2:],
    ).setType(x.type().with_sizes([None, sh._get_tensor_sizes(weight)[0], None, None]))  # fmt: skip


def store_half(model: onnx.ModelProto, min_size: int = 256) -> None:
    """Keep the large float32 constants of a graph as float16 with a cast behind each, in place.

    Computation stays float32: engines fold the casts when they load the graph. A constant whose value float16 does not
    hold exactly stays as it is.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):  # what overflows is kept as it is
            half = values.astype(np.float16)
        if values.size < min_size or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for cast_node in reversed(casts):
        graph.node.insert(0, cast_node)


def main() -> None:
    """Command line. Exit status 1 if an engine disagrees with torch, or with a reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="folder to write")
    parser.add_argument("--frames", type=Path, required=True, help="folder of real camera frames for the parity check")
    parser.add_argument("--count", type=int, default=8, help="frames used (default: %(default)s)")
    parser.add_argument("--deform", choices=("deform_conv", "grid_sample"), default="deform_conv")
    parser.add_argument("--weights", choices=("float16", "float32"), default="float16")
    arguments = parser.parse_args()
    try:
        frames = read_frames(arguments.frames, arguments.count)
        model, settings, card = load_checkpoint(arguments.checkpoint)
        export_bundle(model, settings, card, arguments.bundle, deform=arguments.deform, weights=arguments.weights)
        rows = check_parity(model, arguments.bundle, frames)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if print_parity(rows) else 1)


if __name__ == "__main__":
    main()
