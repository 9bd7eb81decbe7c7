# SPDX-License-Identifier: Apache-2.0
"""Run the commands that README.md and the first tutorial show, as a reader would, on tiny data.

A command `nightlab ...` runs in this process. Of `make demo ...`, the command that make would run is checked, since the
demo itself runs in tests/ros and in continuous integration. Every other command has to be known to `check_other`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from command import nightlab, parse
from tiny_bags import make_frames, write_tiny_bag

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/first-hour.md")


def commands(page: str) -> list[str]:
    """Return the commands of a page: lines of its code blocks, fenced as `sh` or indented, without comments."""
    found, fenced = [], ""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = "" if fenced else line
        elif line.startswith("    ") or re.fullmatch(r"```(sh|bash|console)", fenced):
            words = line.partition(" #")[0].strip().removeprefix("$ ")
            if words and not words.startswith("#"):
                found.append(re.sub(r"^(\S+/)?python3? -m nightlab_cli\b", "nightlab", words))
    return found


@pytest.fixture
def folder(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with everything that the pages name: bags, images with labels, the demo's clip, two bundles."""
    monkeypatch.chdir(tmp_path)
    for module in ("nightlab_core.runtime.bundle", "nightlab_replay.replay"):
        monkeypatch.setattr(f"{module}.default_bundle", lambda: tiny_bundle, raising=False)
    (tmp_path / "my_bundle").symlink_to(tiny_bundle, target_is_directory=True)
    write_tiny_bag(tmp_path / "night_drive", make_frames(8))
    (tmp_path / "dusk.mcap").write_bytes(
        next(write_tiny_bag(tmp_path / "dusk", make_frames(4, seed=1)).glob("*.mcap")).read_bytes()
    )
    for part in ("images", "labels"):
        (tmp_path / "frames" / part).mkdir(parents=True)
    for index, (image, labels) in enumerate(make_frames(6)):
        cv2.imwrite(str(tmp_path / "frames" / "images" / f"{index}.png"), image)
        cv2.imwrite(str(tmp_path / "frames" / "labels" / f"{index}.png"), labels)
    (tmp_path / "demo_out").mkdir()
    (tmp_path / "demo_out" / "clip").symlink_to(tmp_path / "frames", target_is_directory=True)
    return tmp_path


def check_nightlab(words: list[str]) -> None:
    """Run a command. The runs that `nightlab compare` needs are made first."""
    if words[0] == "demo":
        parse(words)
        return
    if words[0] == "compare":
        for out in (Path(word) for word in words[1:3]):
            if not out.exists():
                done = nightlab("replay", "night_drive", "dusk.mcap", "--bundle", "my_bundle", "--out", out)
                assert done.status == 0, done.err
    done = nightlab(*words)
    # A gate of the comparison may fail on tiny data, which is what it is for.
    assert done.status == 0 or (words[0] == "compare" and done.status == 1 and not done.err), (words, done)


def check_make(words: list[str]) -> None:
    """Check that make knows the target, and that the command `nightlab demo` takes what make passes on."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for variable in re.findall(r"^(\w+)=", "\n".join(words), re.MULTILINE):
        assert f"{variable}=" in known, f"make help does not explain {variable}"
    if words[0] == "demo":
        (line,) = re.findall(r"-m nightlab_cli (demo .*)", done.stdout.replace("\\\n", " "))
        parse(shlex.split(line))


def check_other(words: list[str]) -> None:
    """Check what can be checked of a command that installs something or needs a ROS installation."""
    line = " ".join(words)
    if extra := re.search(r"pip install .*\[(\w+)\]", line):
        assert f'"{extra[1]}": ' in (ROOT / "setup.py").read_text(encoding="utf-8")
    for file in re.findall(r"requirements/[\w-]+\.txt", line):
        assert (ROOT / file).is_file(), file
    if words[:2] == ["ros2", "launch"]:
        assert words[2] == "nightlab_ros"
        launch = (ROOT / "launch" / words[3]).read_text(encoding="utf-8")
        assert all(f'"{word.partition(":=")[0]}"' in launch for word in words[4:]), words
    if "colcon build" in line or "$(which colcon) build" in line:
        assert "nightlab_ros" in words
    known = (
        "pip install", "sudo apt install", "colcon build", "ros2 launch", "export ", ". .venv-demo/bin/activate",
        "python3 -m venv --system-site-packages", "$(which colcon) build",
    )  # fmt: skip
    assert any(start in line for start in known), f"this test does not know the command: {line}"


ALL_PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "nightlab_*/**/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", ALL_PAGES)
def test_the_commands_of_every_page_have_the_options_that_nightlab_has(page: str) -> None:
    for line in commands(page):
        line = re.sub(r"(--classes[ =])\S+\.ya?ml", r"\1cityscapes19", line)  # the file is the reader's own
        if re.match(r"nightlab (?!COMMAND|--help)", line):
            parse(shlex.split(line)[1:])


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, folder: Path) -> None:
    if not (ROOT / page).is_file():
        pytest.skip(f"{page} is not written yet")
    found = commands(page)
    assert found
    checks: dict[str, Callable[[list[str]], None]] = {"nightlab": check_nightlab, "make": check_make}
    for line in found:
        words = shlex.split(line)
        check = checks.get(words[0])
        if check:
            check(words[1:])
        else:
            check_other(words)


def test_the_path_of_python_may_hold_spaces_and_quotes() -> None:
    words = ["make", "-n", "-B", ".venv-fuzz/.ready", "PYTHON=/it's a path/python3"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "venv --clear" in line)
    assert shlex.split(line)[0].lstrip("@") == "/it's a path/python3"
