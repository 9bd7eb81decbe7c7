# SPDX-License-Identifier: Apache-2.0
"""One checkpoint from those of the stages: what fits together, and what is refused."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from class_sets import CITYSCAPES19  # noqa: E402
from tiny_training import tiny_settings  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.models.checkpoint import save_checkpoint  # noqa: E402
from training import combine_checkpoints as combining  # noqa: E402
from training.recipes import load_recipe  # noqa: E402

RECIPES = Path(__file__).parents[2] / "config" / "train"
MODEL = tiny_settings()


def test_an_offset_raises_the_logits_of_one_class_only() -> None:
    segmenter = MODEL.build_level("region").segmenter.eval()
    image, names = torch.rand(1, 3, 64, 64), CITYSCAPES19.names
    with torch.inference_mode():
        before = segmenter(image)
        combining.shift_logits(segmenter, names, {"pole": 0.5})
        raised = segmenter(image) - before
    torch.testing.assert_close(raised[:, 5], torch.full_like(raised[:, 5], 0.5))
    assert raised[:, [i for i in range(19) if i != 5]].abs().max() < 1e-5
    with pytest.raises(KeyError, match="names 'lamp'"):
        combining.shift_logits(segmenter, names, {"lamp": 1.0})
    with pytest.raises(ValueError, match="not in 3 biased logits"):
        combining.shift_logits(segmenter, names[:3], {"road": 1.0})


def test_a_bundle_combines_finished_stages_of_its_levels(tmp_path: Path) -> None:
    shipped = load_recipe(RECIPES / "lite_bundle.yaml", combining.CombineRecipe)
    parts = {name: str(tmp_path / f"{name}.pt") for name in ("image", "region", "detector")}
    recipe = replace(shipped, model=MODEL, **parts)

    def write(name: str, level: str, step: int, weights: dict[str, torch.Tensor]) -> None:
        settings = {"level": level, "loop": {"steps": 4}}
        torch.save({"model": weights, "average": None, "step": step, "recipe": settings}, tmp_path / f"{name}.pt")

    levels = {name: MODEL.build_level(name).state_dict() for name in ("image", "region")}
    write("image", "image", 4, levels["image"])
    write("region", "image", 4, levels["image"])
    with pytest.raises(ValueError, match=r"region\.pt is of the image level; expected the region level's"):
        combining.load_stages(recipe)
    write("region", "region", 3, levels["region"])
    with pytest.raises(ValueError, match=r"region\.pt is of step 3 of 4: finish that stage first"):
        combining.load_stages(recipe)
    write("region", "region", 4, levels["region"])
    torch.save({"model": levels["image"], "average": None}, tmp_path / "detector.pt")
    with pytest.raises(ValueError, match=r"detector\.pt does not fit the recipe's model"):
        combining.load_stages(recipe)


def test_a_stage_with_equal_weight_shapes_but_other_settings_is_refused(tmp_path: Path) -> None:
    whole, recipe = tmp_path / "whole.pt", load_recipe(RECIPES / "lite_bundle.yaml", combining.CombineRecipe)
    parts = dict.fromkeys(("image", "region", "detector"), str(whole))
    save_checkpoint(whole, MODEL.build(), MODEL, recipe.card)
    combining.load_stages(replace(recipe, model=MODEL, **parts))
    other_boxes = replace(MODEL.detector, anchor_sizes=((8, 24),))
    with pytest.raises(ValueError, match=r"model\.detector\.anchor_sizes .*16, 32.*, not .*8, 24"):
        combining.load_stages(replace(recipe, model=replace(MODEL, detector=other_boxes), **parts))
    finer = replace(MODEL, region_segmenter=replace(MODEL.segmenter, output_stride=8))
    with pytest.raises(ValueError, match=r"model\.region_segmenter\.output_stride 16, not 8"):
        combining.load_stages(replace(recipe, model=finer, **parts))


def test_several_checkpoints_of_a_level_are_averaged(tmp_path: Path) -> None:
    shipped = load_recipe(RECIPES / "lite_bundle.yaml", combining.CombineRecipe)
    torch.manual_seed(0)
    whole, stage = MODEL.build(), MODEL.build_level("image")
    torch.save({"weights": whole.state_dict()}, tmp_path / "whole.pt")
    torch.save({"model": stage.state_dict(), "average": None}, tmp_path / "stage.pt")
    all_of_it = str(tmp_path / "whole.pt")
    both = replace(
        shipped, model=MODEL, image=(all_of_it, str(tmp_path / "stage.pt")), region=all_of_it, detector=all_of_it,
        region_offsets={},
    )  # fmt: skip
    made = combining.load_stages(both)
    for name, value in made.image.state_dict().items():
        mean = (whole.image.state_dict()[name].double() + stage.state_dict()[name].double()) / 2
        torch.testing.assert_close(value, mean.to(value.dtype), msg=name)
    for part in ("region", "detector"):
        for name, value in getattr(made, part).state_dict().items():
            assert torch.equal(value, getattr(whole, part).state_dict()[name]), name


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    shipped = load_recipe(RECIPES / "lite_bundle.yaml", combining.CombineRecipe)
    with pytest.raises(FileNotFoundError, match="train that stage first"):
        combining.combine_checkpoints(replace(shipped, model=MODEL, image="missing.pt"), tmp_path / "x.pt")
