# SPDX-License-Identifier: Apache-2.0
"""A folder takes a command's output only if it is empty or holds earlier output of the same command."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightlab_core.output import MARKER, OutputError, check_is_new, output_folder


def write_output(folder: Path, command: str, text: str = "result") -> None:
    with output_folder(folder, command):
        (folder / "result.txt").write_text(text)


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_taken_and_taken_again(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "a" / "out"
    if exists:
        folder.mkdir(parents=True)
    write_output(folder, "demo")
    write_output(folder, "demo", "newer")
    assert (folder / "result.txt").read_text() == "newer"


def test_a_folder_with_files_of_the_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    with (
        pytest.raises(OutputError, match="holds files that nightlab demo did not write"),
        output_folder(tmp_path, "demo"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]


def test_a_file_of_that_name_does_not_make_a_folder_ours(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("my own notes")
    with pytest.raises(OutputError, match="did not write"), output_folder(tmp_path, "demo"):
        pass
    assert (tmp_path / MARKER).read_text() == "my own notes"


def test_the_output_of_another_command_is_refused(tmp_path: Path) -> None:
    write_output(tmp_path / "out", "replay")
    with pytest.raises(OutputError, match="output of nightlab replay"), output_folder(tmp_path / "out", "demo"):
        pass


def test_a_second_run_at_once_is_refused_and_a_later_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with output_folder(folder, "demo"):
        with pytest.raises(OutputError, match=r"another process is writing.*\"process\": \d+"):
            write_output(folder, "demo")
        assert not (folder / "result.txt").exists()
    write_output(folder, "demo")


def test_a_folder_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output_folder(tmp_path / "out", "demo"):
        raise KeyError
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyError), output_folder(tmp_path, "demo"):
        raise KeyError
    assert tmp_path.exists(), "the user made it"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    for act in (lambda: write_output(path, "demo"), lambda: check_is_new(path)):
        with pytest.raises(OutputError, match="out is a file; expected a folder"):
            act()


def test_only_an_empty_or_missing_folder_is_new(tmp_path: Path) -> None:
    check_is_new(tmp_path)
    check_is_new(tmp_path / "missing")
    (tmp_path / "image.onnx").touch()
    with pytest.raises(OutputError, match="is not empty"):
        check_is_new(tmp_path)
