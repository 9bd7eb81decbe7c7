# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs to every command: one sentence, an exit status, no traceback, and nothing said twice."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Result, nightlab
from tiny_bags import make_frames, write_tiny_bag

from nightlab_cli.main import COMMANDS

INPUTS: dict[str, Callable[[Path], object]] = {
    "good": lambda path: write_tiny_bag(path, make_frames(2)),
    "empty": lambda path: write_tiny_bag(path, []),
    "rubbish.mcap": lambda path: path.write_bytes(b"rubbish" * 10),
    "rubbish.db3": lambda path: path.write_bytes(b"rubbish" * 30),
    "rubbish.bag": lambda path: path.write_bytes(b"rubbish"),
    "rubbish.mcap.zstd": lambda path: path.write_bytes(b"rubbish"),
    "zero.db3": lambda path: path.write_bytes(b""),
    "dangling.mcap": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
    "text.txt": lambda path: path.write_text("text"),
    "pictures/a.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\nrubbish"),
    "video.mp4": lambda path: path.write_bytes(b"rubbish"),
    "broken/bundle.yaml": lambda path: path.write_text("a: [\n"),
    "run/run.json": lambda path: path.write_text("{"),
    "recipe.yaml": lambda path: path.write_text("a: [\n"),
    "model.pt": lambda path: path.write_bytes(b"rubbish"),
}
#: What is played, converted or replayed, and a part of the sentence.
SOURCES = {
    "missing": "missing does not exist",
    "empty": "empty",
    "rubbish.mcap": "do not begin as an MCAP file does",
    "rubbish.db3": "do not begin as a SQLite file does",
    "rubbish.bag": "rubbish.bag cannot be opened",
    "rubbish.mcap.zstd": "rubbish.mcap.zstd: nothing can be read",
    "zero.db3": "do not begin as a SQLite file does",
    "dangling.mcap": "dangling.mcap does not exist",
    "folder": "nothing",
    "text.txt": "text.txt is no",
    "pictures": "a.png",
    "video.mp4": "video.mp4",
}
#: Other wrong inputs by command line, and a part of the sentence. BUNDLE stands for a working bundle.
LINES = {
    "bag good --out bag --labels folder": "received --labels folder for the bag good; expected --labels and --glob for",
    "bag good --out bag --glob a*": "received --glob a* for the bag good",
    "bag pictures --out bag --topic /x": "received --topic /x for the folder pictures",
    "bag video.mp4 --out bag --label-topic /x": "received --label-topic /x for the video video.mp4",
    "bag good --out text.txt": "text.txt exists already",
    "bag good --out text.txt/bag": "text.txt/bag: Not a directory",
    "bag good --out bag --out-topic camera": "received the topic 'camera'; expected a name such as /camera/image_raw",
    "bag good --out bag --topic /x": "image topic /x is not there",
    "demo --input missing": "missing does not exist",
    "demo --input empty": "empty holds no topic of camera images",
    "demo --topic /x": "received --topic /x for the rendered clip",
    "demo --input good --param bundle": "received the parameter 'bundle'; expected NAME:=VALUE",
    "demo --input good --param bundle:=[": "parameter bundle: not readable as YAML",
    "demo --input good --param bundle:=broken": "not readable as YAML",
    "demo --input good --rate nan": "rate is nan",
    "demo --input good --out text.txt": "text.txt is a file",
    "replay good --out out --bundle missing": "missing/bundle.yaml: no such file",
    "replay good --out out --bundle broken": "not readable as YAML: expected the node content",
    "replay good --out text.txt --bundle BUNDLE": "text.txt is a file",
    "replay good good --out out --bundle BUNDLE": "good is given twice",
    "replay good --out out --bundle BUNDLE --topic /x": "image topic /x is not there",
    "compare missing missing": "missing holds no run.json",
    "compare text.txt run": "text.txt holds no run.json",
    "compare run run": "run.json: the whole file: Invalid JSON",
    "benchmark --bundle missing": "missing/bundle.yaml: no such file",
    "benchmark --bundle broken": "not readable as YAML",
    "engine build --bundle missing": "missing/bundle.yaml: no such file",
    "engine build --bundle broken": "not readable as YAML",
    "evaluate missing --data folder --dataset camvid/val": "missing: no such checkpoint or bundle",
    "evaluate model.pt --data folder --dataset camvid/val": "model.pt is not a checkpoint",
    "evaluate broken --data folder --dataset camvid/val": "not readable as YAML",
    "evaluate BUNDLE --data missing --dataset camvid/val": "missing/camvid/val",
    "evaluate BUNDLE --data folder --dataset x --scale 0": "scales.0: received 0.0",
    "export model.pt --out folder --input missing": "missing: No such file",
    "export model.pt --out out --input folder": "folder contains no image",
    "export model.pt --out run --input folder": "run is not empty",
    "export model.pt --out out --input pictures": "a.png cannot be read as an image",
}
#: Packages that a command needs beyond those of the vehicle.
NEEDED = {"demo": "rclpy", "evaluate": "torch", "export": "torch"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name, make in INPUTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        make(folder / name)
    return folder


@pytest.fixture
def run(inputs: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Run a command line in the folder of the inputs, and check what holds for every wrong input."""
    monkeypatch.chdir(inputs)

    def run_line(line: str) -> Result:
        needed = NEEDED.get(line.split(" ")[0])
        if needed and importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
        words = [str(tiny_bundle) if word == "BUNDLE" else word for word in line.split(" ")]
        before = set(inputs.iterdir())
        done = nightlab(*words)
        assert done.status == (2 if words[0] == "compare" else 1), done
        first, *more = done.err.splitlines()
        assert first.startswith(f"nightlab {words[0]}: ") and "fault of NightLab" not in first
        assert all(line.startswith("  ") for line in more), "one sentence, which a list of topics may follow"
        said = [line for line in [*done.out.splitlines(), *done.err.splitlines()] if line]
        assert len(set(said)) == len(said) and "Traceback" not in done.err
        if words[0] != "replay":  # whose report says which bag could not be read
            assert set(inputs.iterdir()) == before, "nothing is left behind"
        return done

    return run_line


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_cannot_be_read_is_one_sentence(name: str, run: Callable[[str], Result]) -> None:
    assert SOURCES[name] in run(f"bag {name} --out bag").err
    done = run(f"replay {name} --bundle BUNDLE --engine onnxruntime --out out_{name}")
    said = done.out + done.err
    assert name in said and f"{name}: {name}" not in said


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_input_is_one_sentence(line: str, run: Callable[[str], Result]) -> None:
    assert LINES[line] in run(line).err
    assert "Traceback" in nightlab(*line.replace("BUNDLE", "missing").split(" "), "-v").err, "-v shows the cause"


def test_every_command_has_a_wrong_input() -> None:
    assert {line.split(" ")[0] for line in LINES} == set(COMMANDS)
