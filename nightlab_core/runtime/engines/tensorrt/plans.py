# SPDX-License-Identifier: Apache-2.0
"""Keep TensorRT plans in a cache: one file for each plan, with a header that says what it was built from.

A file is two lines of text and the plan::

    nightlab-plan 2 SHA-256-of-the-next-line
    {"key": {...}, "plan_bytes": ..., "plan_sha256": ..., ...}
    the plan as TensorRT serialised it

A plan is loaded only after its key, length and SHA-256 were checked. The SHA-256 finds damaged and mixed-up files, not
attacks: whoever may write a file can write a new SHA-256 too. So a file that other users may write is refused as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ValidationError

from nightlab_core.config import Settings
from nightlab_core.files import atomic_path, user_cache_folder
from nightlab_core.runtime.bundle import EngineKind
from nightlab_core.runtime.engines.tensorrt.libraries import Target, TensorRtName

FORMAT = 2
SUFFIX = ".plan"
MAGIC = "nightlab-plan"
Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  #: smallest, most frequent and largest shape of an input


class PlanError(RuntimeError):
    """No plan can be loaded. The message says what differs and which command builds a new one."""


class PlanOwnerError(PlanError):
    """Another user may have written the plan. It may be valid."""


class PlanKey(Settings):
    """Everything that a plan depends on. A plan is loaded only if every field agrees."""

    kind: EngineKind
    onnx_sha256: str
    graph_version: int  #: of the rewriting from the bundle's ONNX to what TensorRT takes
    library: TensorRtName
    version: str  #: TensorRT's
    platform: str
    capabilities: tuple[str, ...]
    gpu_name: str
    precision: Literal["float16", "float32"]
    shapes: dict[str, Range]  #: of every input

    @property
    def target(self) -> Target:
        return Target(self.capabilities, self.gpu_name)

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{self.kind}-{digest[:16]}{SUFFIX}"


class TensorInfo(Settings):
    """One input or output of the network."""

    dtype: str
    shape: tuple[int | None, ...]  #: None: free in the network; the plan may fix it


class PlanHeader(Settings):
    """The header of a plan's file."""

    key: PlanKey
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    built: str  #: ISO time, UTC
    build_seconds: float
    layers: dict[str, dict[str, int]]  #: number of layers by type of result, then by kind of layer
    io_bytes: int  #: of all inputs and outputs at their largest; an engine holds them twice, on the host and the device
    plan_bytes: int
    plan_sha256: str


def cache_folder() -> Path:
    """Return NIGHTLAB_PLANS, or nightlab/plans in the user's cache folder. Raises PlanError if the user has no home."""
    if folder := os.environ.get("NIGHTLAB_PLANS"):
        return Path(folder)
    try:
        return user_cache_folder() / "plans"
    except RuntimeError as error:
        raise PlanError("this user has no home folder: set NIGHTLAB_PLANS to the folder of the plans") from error


def differences(key: PlanKey, wanted: PlanKey) -> list[str]:
    """Return a phrase for each field in which the key of a plan does not fit the key `wanted`."""
    phrases = []
    for name in PlanKey.model_fields:
        received, expected = getattr(key, name), getattr(wanted, name)
        if name == "gpu_name":
            continue  # compared with the capabilities
        if name == "capabilities":
            if not key.target.serves(wanted.target):
                phrases.append(f"GPU: built for {key.target}, here it is {wanted.target}")
        elif name == "shapes":
            if not covers(received, expected):
                phrases.append(f"shapes: built for {_shown(received)}, here it is {_shown(expected)}")
        elif received != expected:
            phrases.append(f"{name.replace('_', ' ')}: built with {received}, here it is {expected}")
    return phrases


def covers(built: Mapping[str, Range], wanted: Mapping[str, Range]) -> bool:
    """Return True if a plan built for these ranges of shapes accepts every shape wanted."""
    return built.keys() == wanted.keys() and all(
        len(built[name][0]) == len(low)
        and all(a <= b for a, b in zip(built[name][0], low, strict=True))
        and all(a >= b for a, b in zip(built[name][2], high, strict=True))
        for name, (low, _, high) in wanted.items()
    )


def plan_files(folder: Path) -> list[Path]:
    """Return the plans in a folder, oldest first. The folder may be missing."""
    ages = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process since it was listed
            ages.append((path.stat().st_mtime, path.name, path))
    return [path for _, _, path in sorted(ages)]


def read_header(path: Path) -> PlanHeader:
    """Return the checked header of a plan's file. Raises PlanError that says what is wrong."""
    with _open(path) as file:
        return _read_head(path, file)


def read_plan(path: Path, wanted: PlanKey | None = None) -> tuple[PlanHeader, bytes]:
    """Return header and plan after all checks. Raises PlanError that says what differs.

    Without `wanted`, the key is not compared with this machine.
    """
    with _open(path) as file:  # once, so that the checked file is the loaded one even if another is renamed over it
        _check_owner(path, os.fstat(file.fileno()))
        header = _read_head(path, file)
        if header.key.file_name != path.name:
            raise PlanError(f"{path}: does not match its key; expected the name {header.key.file_name}")
        if wanted is not None and (phrases := differences(header.key, wanted)):
            raise PlanError(f"{path}: " + "; ".join(phrases))
        plan = file.read()
    if len(plan) != header.plan_bytes:
        raise PlanError(f"{path}: received {len(plan)} bytes of plan, expected {header.plan_bytes}: it was cut short")
    received = hashlib.sha256(plan).hexdigest()
    if received != header.plan_sha256:
        raise PlanError(f"{path}: the plan's SHA-256 is {received}, expected {header.plan_sha256}: it was changed")
    return header, plan


def find_plan(folder: Path, wanted: PlanKey) -> tuple[PlanHeader, bytes]:
    """Return the newest valid plan that fits. Raises PlanError that says why the nearest ones do not."""
    refusals: list[tuple[int, str]] = []
    for path in reversed(plan_files(folder)):
        try:
            return read_plan(path, wanted)
        except PlanError as error:
            rank = 1
            with contextlib.suppress(PlanError):  # a damaged header keeps rank 1
                key = read_header(path).key
                rank = 1 + len(differences(key, wanted)) if key.kind == wanted.kind else 100
            if rank < 100:
                refusals.append((rank, str(error)))
    if not refusals:
        raise PlanError(f"there is no plan of the {wanted.kind} network in {folder}")
    lines = [line for _, line in sorted(refusals, key=lambda refusal: refusal[0])[:3]]
    raise PlanError(f"no plan of the {wanted.kind} network fits:\n  " + "\n  ".join(lines))


def write_plan(folder: Path, header: PlanHeader, plan: bytes) -> Path:
    """Store a plan under its key's name. The file is complete or does not exist, even after a loss of power.

    Raises PlanError if it cannot be written.
    """
    line = header.model_dump_json().encode()
    path = folder / header.key.file_name
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                file.write(f"{MAGIC} {FORMAT} {hashlib.sha256(line).hexdigest()}\n".encode() + line + b"\n")
                file.write(plan)
            temporary.chmod(0o644)
    except OSError as error:
        raise PlanError(f"{folder}: the plan cannot be written: {error.strerror}") from error
    return path


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a folder, which is created if necessary. One process at a time builds into it.

    The lock ends with its process. `waiting` is called about ten times a second while another process holds the lock;
    an exception from it ends the wait. Raises PlanError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise PlanError(f"{folder}: {error.strerror}; set NIGHTLAB_PLANS to a folder that can be written") from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.1)
        for left in folder.glob(f".*{SUFFIX}.*"):  # of a killed process: nobody else writes now
            left.unlink(missing_ok=True)
        yield


def remove_plans(
    folder: Path, unwanted: Callable[[Path], bool], waiting: Callable[[], None] = lambda: None
) -> Iterable[tuple[Path, int]]:
    """Delete plans and yield each with its size in bytes. A process that loaded one keeps it.

    `waiting`: see `locked`.
    """
    with locked(folder, waiting):
        for path in plan_files(folder):
            if unwanted(path):
                size = path.stat().st_size
                path.unlink()
                yield path, size


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error


def _read_head(path: Path, file: BinaryIO) -> PlanHeader:
    """Return the checked header. The file is then at the start of the plan."""
    first, line = file.readline(200), file.readline(1 << 20)
    words = first.decode(errors="replace").split()
    if len(words) != 3 or words[0] != MAGIC:
        raise PlanError(f"{path}: is not a plan of nightlab")
    if words[1] != str(FORMAT):
        raise PlanError(f"{path}: received format {words[1]}, expected {FORMAT}")
    if hashlib.sha256(line.rstrip(b"\n")).hexdigest() != words[2] or not line.endswith(b"\n"):
        raise PlanError(f"{path}: the header was changed or cut short")
    try:
        return PlanHeader.model_validate_json(line)
    except ValidationError as error:
        raise PlanError(f"{path}: the header is not one of this version: {error.errors()[0]['msg']}") from error


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PlanOwnerError(
            f"{path}: users other than root and this one may write it, and a plan can hold code: "
            f"received owner {status.st_uid}, mode {stat.filemode(status.st_mode)}; expected owner 0 or "
            f"{os.geteuid()} and no write permission for others (chmod go-w), or build it again"
        )


def _shown(shapes: Mapping[str, Range]) -> str:
    shown = []
    for name, (low, _, high) in shapes.items():
        sides = (str(a) if a == b else f"{a}..{b}" for a, b in zip(low, high, strict=True))
        shown.append(f"{name} ({', '.join(sides)})")
    return ", ".join(shown)
