# SPDX-License-Identifier: Apache-2.0
"""The atomic writer: a file is whole or as it was before."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from nightlab_core.files import atomic_path, set_torch_cache, write_atomic


@pytest.mark.parametrize("data", ["grün\n", "grün\n".encode()])
def test_write_atomic_replaces_a_file(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    write_atomic(path, data)
    assert path.read_text(encoding="utf-8") == "grün\n"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_leaves_the_file_if_the_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_shows_the_file_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == path.parent, "another file system could not be renamed from"
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_path_leaves_the_file_if_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_removes_old_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    path = tmp_path / "[a].bin"
    old, recent, other = (tmp_path / name for name in (".[a].bin.1", ".[a].bin.2", ".b.bin.1"))
    for file in (old, recent, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([recent, other, path])


def test_atomic_path_keeps_old_hidden_files_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    users = [tmp_path / name for name in (".a.pt.swp", ".a.pt.bak", ".a.pt.old.1")]
    for file in users:
        file.touch()
        os.utime(file, (0, 0))
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([*users, path])


@pytest.mark.parametrize("error", [None, KeyError("getpwuid(): uid not found: 54321"), OSError("No username set")])
def test_torch_gets_a_cache_folder_if_the_user_has_no_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def user() -> str:
        if error is not None:
            raise error
        return "somebody"

    monkeypatch.setattr(getpass, "getuser", user)
    monkeypatch.setattr(os, "environ", {})
    set_torch_cache()
    assert ("TORCHINDUCTOR_CACHE_DIR" in os.environ) is (error is not None)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = "/mine"
    set_torch_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
