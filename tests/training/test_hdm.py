# SPDX-License-Identifier: Apache-2.0
"""HDM: proposals are measured once, boxes stay as they are, and the scores learn which regions bring something."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from class_sets import CAMVID11, CITYSCAPES19  # noqa: E402
from tiny_training import tiny_settings, write_frames, write_tiny_checkpoint  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.data.rendered import night  # noqa: E402
from training import networks  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
from training.sources import SourceSettings  # noqa: E402
from training.stages import hdm, proposals  # noqa: E402

RECIPES = Path(__file__).parents[2] / "config" / "train"
PLAIN = tiny_settings()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rendered frames as a data set, and a NightLab with random weights."""
    root = tmp_path_factory.mktemp("hdm")
    write_frames(root / "mine", 2)
    write_tiny_checkpoint(root / "nightlab.pt", PLAIN)
    return root


def _recipe(root: Path, **changes: object) -> hdm.HdmRecipe:
    shipped = load_recipe(RECIPES / "ablation" / "lite_hdm_equation6.yaml", hdm.HdmRecipe)
    loop = replace(shipped.loop, steps=200, batch_size=2, workers=0, warmup_steps=0, learning_rate=0.01, ema_decay=0.0)
    return replace(
        shipped,
        **{
            "model": replace(PLAIN, detector=replace(PLAIN.detector, hdm_channels=16)),
            "detector": str(root / "nightlab.pt"),
            "levels": str(root / "nightlab.pt"),
            "proposals": str(root / "proposals.npz"),
            "frames": 3,
            "per_frame": 6,
            "input_hw": (64, 96),
            "loop": loop,
            "sources": (SourceSettings(kind="folder", folder="mine", weight=1.0),),
            **changes,
        },
    )


def test_the_shipped_recipes_differ_in_their_target_only() -> None:
    targets = ("equation6", "helps", "gain")
    recipes = [load_recipe(RECIPES / "ablation" / f"lite_hdm_{target}.yaml", hdm.HdmRecipe) for target in targets]
    assert all(replace(recipes[0], target=target) == r for target, r in zip(targets, recipes, strict=True))
    ours = load_recipe(RECIPES / "lite_hdm_helps.yaml", hdm.HdmRecipe)  # of the bundle that `make train-lite` makes
    of_what = ("detector", "levels", "proposals")
    assert replace(ours, **{key: getattr(recipes[1], key) for key in of_what}) == recipes[1]


def test_only_the_hardness_module_is_trained(root: Path, tmp_path: Path) -> None:
    recipe = _recipe(root)
    hdm.train(recipe, root, tmp_path)
    before, _ = networks.load_detector(root / "nightlab.pt")
    after, input_hw = networks.load_detector(tmp_path / "checkpoint.pt")
    assert input_hw == (64, 96) and after.hdm is not None
    own = after.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in before.state_dict().items())

    reader = proposals.open_reader(recipe.sources, root, 0, CITYSCAPES19)
    measured = hdm.measure(recipe, before, reader)  # from the file
    targets = torch.from_numpy(proposals.targets(measured, "equation6", "confident", [CITYSCAPES19]))
    assert 0 < targets.mean() < 1  # there is something to tell apart
    losses = []
    for detector in (hdm.build(recipe), after):
        found = hdm.ProposalSet(detector, reader, measured, targets.numpy(), recipe)
        samples = [found[i] for i in range(3)]
        with torch.no_grad():
            loss = hdm.hardness_loss(hdm._Hardness(detector), hdm.collate(samples))["hardness"]
        losses.append(float(loss.value))
    assert losses[1] < 0.8 * losses[0]

    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        old, new = before(image), after(image)
    assert sorted(map(tuple, old[0][0].tolist())) == sorted(map(tuple, new[0][0].tolist()))  # the same boxes,
    assert not torch.equal(old[1], new[1])  # in another order
    assert (new[1][:, :-1] >= new[1][:, 1:]).all() and new[1].min() >= 0 and new[1].max() <= 1

    frame = night.render_scene(0, size_hw=(96, 128)).image_bgr  # without regard to its HDM it is the RDN that it was
    plain, aside = (
        networks.open_hardness(p, q).engine(frame=frame[None])
        for p, q in ((root / "nightlab.pt", False), (tmp_path / "checkpoint.pt", True))
    )
    np.testing.assert_array_equal(plain["boxes"], aside["boxes"])
    np.testing.assert_array_equal(plain["scores"], aside["scores"])


def test_measuring_resumes_and_refuses_files_of_another_recipe(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "CHUNK", 1)
    recipe = _recipe(root, proposals=str(tmp_path / "p.npz"))
    detector = hdm.build(recipe)
    reader = proposals.open_reader(recipe.sources, root, 0, CITYSCAPES19)
    whole = hdm.measure(recipe, detector, reader)
    (tmp_path / "p.npz").unlink()
    frame = proposals.FrameReader.frame

    def dies(self: proposals.FrameReader, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        if index == 2:
            raise KeyboardInterrupt
        return frame(self, index)

    monkeypatch.setattr(proposals.FrameReader, "frame", dies)
    with pytest.raises(KeyboardInterrupt):
        hdm.measure(recipe, detector, reader)
    monkeypatch.setattr(proposals.FrameReader, "frame", frame)
    seen: list[int] = []
    monkeypatch.setattr(proposals.FrameReader, "frame", lambda self, i: seen.append(i) or frame(self, i))
    again = hdm.measure(recipe, detector, reader)
    assert seen == [2]
    for name in ("frame", "anchor", "score", "iou", "hits", "predicted", "source", "matrix"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    with pytest.raises(ValueError, match="measured with another per_frame; remove it"):
        hdm.measure(replace(recipe, per_frame=5), detector, reader)


def test_a_finished_run_of_another_detector_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(root / "nightlab.pt", tmp_path / "rdn.pt")
    recipe = _recipe(root, detector=str(tmp_path / "rdn.pt"), proposals=str(tmp_path / "p.npz"))
    recipe = replace(recipe, loop=replace(recipe.loop, steps=1))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = ["hdm", str(tmp_path / "recipe.yaml"), "--data", str(root), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    hdm.STAGE.main("")
    hdm.STAGE.main("")
    assert "is finished" in capsys.readouterr().out
    state = torch.load(tmp_path / "rdn.pt", weights_only=True)
    state["weights"] = {key: value * 1.01 for key, value in state["weights"].items()}
    torch.save(state, tmp_path / "rdn.pt")
    # Also where what was measured is removed, as the error about it says: the trained head is not.
    for leave_out in ([], [tmp_path / "p.npz"]):
        for path in leave_out:
            path.unlink()
        with pytest.raises(SystemExit):
            hdm.STAGE.main("")
        assert "out/checkpoint.pt was trained from another detector" in capsys.readouterr().err


def _measured(hits: list[int], source: list[int], frame: list[int]) -> proposals.Proposals:
    """Proposals that change `hits` pixels of class 1, called class 0 before, on frames of 100 + 100 pixels."""
    change = np.zeros((len(hits), 2, 19), np.int32)
    change[:, :, 1] = np.array(hits)[:, None]
    predicted = change.copy()
    predicted[:, :, 0] = -change[:, :, 1]
    matrix = np.zeros((len(source), 19, 20), np.int32)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 1, 0] = 100, 60, 40
    better = np.stack([np.full(len(hits), 0.5), 0.5 + np.sign(hits) / 4], 1)
    zeros = np.zeros(len(hits), np.int64)
    return proposals.Proposals(
        np.array(frame), zeros, zeros.astype(np.float32), better, change, predicted, np.array(source), matrix
    )


def test_targets_equal_hand_computed_values() -> None:
    measured = _measured([10, -10, 0, 40, 20], source=[0, 1], frame=[0, 0, 0, 1, 1])
    sets = [CAMVID11, CITYSCAPES19]
    np.testing.assert_array_equal(proposals.targets(measured, "equation6", "confident", sets), [1, 0, 0, 1, 1])
    # What helps may differ by the merge: the first region brings as much by one as it costs by the other.
    signs = np.array([[[1], [-1]], *[[[1], [1]]] * 4])
    by_merge = dataclasses.replace(measured, hits=measured.hits * signs, predicted=measured.predicted * signs)
    np.testing.assert_array_equal(proposals.targets(by_merge, "helps", "replace", sets), [1, 0, 0, 1, 1])
    np.testing.assert_array_equal(proposals.targets(by_merge, "helps", "confident", sets), [0, 0, 0, 1, 1])
    gain = proposals.targets(measured, "gain", "confident", sets, clip_at=100)
    # The larger the gain the higher, 0.5 is none, a loss mirrors a gain, and the largest is 1.
    np.testing.assert_allclose(gain, [0.625, 0.375, 0.5, 1.0, 0.75], atol=1e-6)
    clipped = proposals.targets(measured, "gain", "confident", sets, clip_at=50)
    assert clipped[3] == clipped[4] == 1.0
    # Twice as many frames of one set change nothing for another.
    more = _measured([10, -10, 0, 40, 20, 40], source=[0, 1, 1], frame=[0, 0, 0, 1, 1, 2])
    np.testing.assert_allclose(proposals.targets(more, "gain", "confident", sets, clip_at=100)[:5], gain, atol=1e-6)


def test_unusable_recipes_and_checkpoints_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hdm_channels is 0"):
        hdm.build(_recipe(root, model=PLAIN))
    with pytest.raises(ValueError, match="does not fit the recipe's model"):
        detector = replace(PLAIN.detector, hdm_channels=16, channels=24)
        hdm.build(_recipe(root, model=replace(PLAIN, detector=detector)))
    with pytest.raises(FileNotFoundError, match=r"missing.pt: no such checkpoint"):
        hdm.build(_recipe(root, detector=str(tmp_path / "missing.pt")))
    with pytest.raises(ValueError, match="no hardness detection module"):
        networks.load_detector(root / "nightlab.pt")[0].hardness_logits([], torch.tensor([[0]]))


def test_several_processes_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would measure all proposals, and write the same file."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process"):
        hdm.train(_recipe(root), root, tmp_path)


def test_workers_are_refused(root: Path, tmp_path: Path) -> None:
    """They would run the detector in a copy of this process, which a GPU refuses."""
    recipe = _recipe(root)
    with pytest.raises(ValueError, match=r"loop\.workers is 1; expected 0"):
        hdm.train(replace(recipe, loop=replace(recipe.loop, workers=1)), root, tmp_path)


def test_the_trained_target_decides_the_ranking(root: Path) -> None:
    """The trained target decides the ranking, and the checkpoint's weights carry it."""
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for target in ("equation6", "helps", "gain"):
        detector = hdm.build(_recipe(root, target=target)).eval()
        assert detector.hdm is not None and bool(detector.state_dict()["hdm.classifies"]) == (target != "gain")
        torch.nn.init.normal_(detector.hdm.logits.weight, std=2.0, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            _, objectness, anchors, features = detector.propose(image)
            hardness = detector.hardness_logits(features, anchors).sigmoid()
            scores = detector(image)[1]
        assert (hardness > 0.5).any() and (hardness < 0.5).any()
        wanted = hardness if target == "gain" else ((hardness >= 0.5).float() + objectness) / 2
        torch.testing.assert_close(scores, wanted.sort(descending=True).values)


def test_cached_features_equal_recomputed_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(root)
    detector = hdm.build(recipe)
    reader = proposals.open_reader(recipe.sources, root, 0, CITYSCAPES19)
    measured = hdm.measure(recipe, detector, reader)
    targets = np.zeros(len(measured.frame), np.float32)
    keeping = hdm.ProposalSet(detector, reader, measured, targets, recipe)
    monkeypatch.setattr(hdm, "CACHE_BYTES", 0)
    poor = hdm.ProposalSet(detector, reader, measured, targets, recipe)
    for i in (0, 3, 6):
        for a, b in zip(keeping[i][0], poor[i][0], strict=True):
            assert torch.equal(a, b)
    assert keeping.kept and not poor.kept
    # Every frame once a turn, in another order each turn.
    turns = [[int(keeping[3 * t + i][1].sum()) for i in range(3)] for t in range(4)]
    assert all(sorted(turn) == sorted(turns[0]) for turn in turns)
