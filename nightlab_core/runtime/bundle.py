# SPDX-License-Identifier: Apache-2.0
"""Read and write bundles: a folder with three ONNX networks and bundle.yaml. The format is described in docs/bundle.md.

A bundle is data from outside: it holds no pickle and runs no code when it is loaded, every file is checked by its
SHA-256, and every number is limited.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from nightlab_core.classes import shipped_class_set
from nightlab_core.config import Settings, load_yaml, replace
from nightlab_core.files import write_atomic
from nightlab_core.labels import IGNORE_ID, MAX_CLASSES, ClassMapping, ClassSet
from nightlab_core.runtime.onnx_file import read_onnx
from nightlab_core.runtime.regions import CONTEXT_STRIDE, MAX_INPUT_PIXELS, network_size_hw
from nightlab_core.yaml_files import ConfigError, read_yaml, to_yaml

FORMAT = 1
MANIFEST_NAME = "bundle.yaml"
EngineKind = Literal["image", "hardness", "region"]
ENGINE_KINDS: tuple[EngineKind, ...] = ("image", "hardness", "region")

Byte = Annotated[int, Field(ge=0, le=255)]
Name = Annotated[str, Field(max_length=100)]  #: it stands in each message of diagnostics
Text = Annotated[str, Field(max_length=2000)]
#: Limits of what a network reads: pixels of a side, and of all frames or crops of one call.
MAX_SIDE = 4096
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
#: Sizes of a crop beside `input_hw`: engines keep what they compiled for each.
MAX_FURTHER_SIZES = 3


class BundleError(Exception):
    """A bundle cannot be used. The message names the file, the value received, the value expected and the remedy."""


class EngineFile(Settings):
    """One network of the bundle."""

    file: Text  #: name inside the folder
    sha256: Name = ""  #: hexadecimal; `write_manifest` fills it in
    input_hw: tuple[Side, Side]  #: working size; the runtime reads frames at about this area
    multiple: Side  #: both sides of an input must be multiples of this

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, file: str) -> str:
        parts = [*PurePosixPath(file).parts, *PureWindowsPath(file).parts]
        absolute = PurePosixPath(file).is_absolute() or PureWindowsPath(file).anchor
        if not file or absolute or ".." in parts:
            raise ValueError("expected a file name inside the bundle's folder, not absolute and without '..'")
        return file

    @model_validator(mode="after")
    def _sides_are_multiples(self) -> EngineFile:
        if any(side % self.multiple for side in self.input_hw):
            raise ValueError(f"input_hw {self.input_hw} is not a multiple of {self.multiple}")
        _check_pixels(self.input_hw, 1)
        return self

    def network_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size (height, width) at which the network reads frames of this size: see `network_size_hw`."""
        return network_size_hw(frame_hw, self.input_hw, self.multiple)

    def scaled(self, scale: float) -> EngineFile:
        """Return the entry with sides `scale` times as long, whole multiples. Raises ValueError unless scale > 0."""
        if not scale > 0:
            raise ValueError(f"scale: received {scale:g}, expected a number above 0")
        sides = tuple(max(1, round(side * scale / self.multiple)) * self.multiple for side in self.input_hw)
        return replace(self, input_hw=sides)


class RegionFile(EngineFile):
    """The region network, which reads several crops of one size in one batch."""

    max_batch: Annotated[int, Field(ge=1, le=10)]
    #: Further sizes of a crop, with the aspect of `input_hw`.
    further_hw: Annotated[tuple[tuple[Side, Side], ...], Field(max_length=MAX_FURTHER_SIZES)] = ()
    context: bool = False  #: the network also reads the image level's probabilities in each window

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> RegionFile:
        for height, width in self.further_hw:
            if height % self.multiple or width % self.multiple:
                raise ValueError(f"further_hw: {[height, width]} is not a multiple of {self.multiple}")
            if height * self.input_hw[1] != width * self.input_hw[0]:
                raise ValueError(f"further_hw: {[height, width]} has another aspect than input_hw {self.input_hw}")
        for size_hw in self.sizes_hw:
            _check_pixels(size_hw, self.max_batch)
        return self

    def input_shapes(self, batch: int, size_hw: tuple[int, int], num_classes: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the network's inputs for crops of one of its sizes, by name."""
        shapes: dict[str, tuple[int, ...]] = {"crops": (batch, *size_hw, 3)}
        if self.context:
            shapes["context"] = (batch, *(side // CONTEXT_STRIDE for side in size_hw), num_classes)
        return shapes

    @property
    def sizes_hw(self) -> tuple[tuple[int, int], ...]:
        """Sizes (height, width) at which crops may be read, in ascending order."""
        return tuple(sorted({self.input_hw, *self.further_hw}))


class EngineFiles(Settings):
    """The three networks."""

    image: EngineFile
    hardness: EngineFile
    region: RegionFile


class Classes(Settings):
    """Names and colours of the class ids 0..C-1."""

    names: tuple[Name, ...]
    colors_rgb: tuple[tuple[Byte, Byte, Byte], ...]
    ignore_id: Annotated[int, Field(ge=IGNORE_ID, le=IGNORE_ID)] = IGNORE_ID
    key: Name = ""  #: of the class set; empty: the bundle's name
    mappings_to: dict[str, ClassMapping] = Field(default_factory=dict)  #: the classes in other class sets, by their key

    @model_validator(mode="after")
    def _one_colour_a_name(self) -> Classes:
        if not 1 <= len(self.names) <= MAX_CLASSES or len(set(self.names)) != len(self.names):
            raise ValueError(f"expected 1 to {MAX_CLASSES} distinct names, received {list(self.names)}")
        if len(self.names) != len(self.colors_rgb):
            raise ValueError(f"{len(self.names)} names but {len(self.colors_rgb)} colours")
        return self


class Manifest(Settings):
    """Content of bundle.yaml. Every key is required unless it has a default."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT
    name: Name
    created: Name  #: ISO date
    classes: Classes
    hard_classes: tuple[Name, ...]  #: names of the classes that the hardness network was trained to find
    engines: EngineFiles
    preprocessing: Text  #: for people: preprocessing is inside the graphs
    deform: Literal["deform_conv", "grid_sample"]  #: ONNX form of the deformable convolutions
    weights: Literal["float16", "float32", "int8"]  #: how they are stored
    trained_on: tuple[Text, ...]
    accuracy: dict[Name, float]  #: measured figures by name
    licence: Text

    @model_validator(mode="after")
    def _hard_classes_exist(self) -> Manifest:
        unknown = set(self.hard_classes) - set(self.classes.names)
        if unknown:
            raise ValueError(f"hard_classes {sorted(unknown)} are not among the classes' names")
        return self


@dataclass(frozen=True)
class Bundle:
    """A manifest and the folder of its files, which were checked. A model in torch has no files and an empty folder."""

    dir: Path
    manifest: Manifest

    @cached_property
    def class_set(self) -> ClassSet:
        """The shipped class set with these names and colours, or else the manifest's own."""
        own = self.manifest.classes
        return shipped_class_set(own.names, own.colors_rgb) or ClassSet(
            key=own.key or self.manifest.name,
            names=own.names,
            colors_rgb=own.colors_rgb,
            mappings_to=own.mappings_to,
        )

    @property
    def hard_class_ids(self) -> tuple[int, ...]:
        """Ids of the hard classes, in the manifest's order."""
        return tuple(self.class_set.id_of(name) for name in self.manifest.hard_classes)

    def path(self, kind: EngineKind) -> Path:
        """Return the path of one network's ONNX file."""
        return self.dir / getattr(self.manifest.engines, kind).file


def default_bundle() -> Path:
    """Return the folder of the bundle that this package ships."""
    return Path(str(resources.files("nightlab_core") / "bundles" / "nightlab-lite"))


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def load_bundle(directory: str | Path) -> Bundle:
    """Read a bundle and check its files, keys and SHA-256. Raises BundleError."""
    folder = Path(directory)
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{path}: no such file; expected the folder of a bundle, as nightlab export writes it")
    try:
        version = read_yaml(path).get("format")
        if version != FORMAT or not isinstance(version, int) or isinstance(version, bool):
            raise BundleError(
                f"{path}: received format {version!r}, expected {FORMAT}; export the bundle again, or update nightlab"
            )
        manifest = load_yaml(path, Manifest)
    except ConfigError as error:
        raise BundleError(f"{error}; correct {MANIFEST_NAME}, or export the bundle again") from error
    for kind, engine in _engine_files(manifest).items():
        _check_file(folder, kind, engine, len(manifest.classes.names))
    return Bundle(folder, manifest)


def _check_file(folder: Path, kind: EngineKind, engine: EngineFile, num_classes: int) -> None:
    """Raise BundleError unless a network's file lies in the bundle, is complete, and fits the classes."""
    file = folder / engine.file
    if not file.is_file():
        raise BundleError(f"{file}: no such file; the {kind} network of {folder} is expected there: copy it again")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{file}: received a link to {file.resolve()}, outside the bundle; copy the file itself")
    received = sha256_of(file)
    if received != engine.sha256:
        raise BundleError(
            f"{file}: received SHA-256 {received}, expected {engine.sha256 or 'one in ' + MANIFEST_NAME}; "
            "the file was changed or cut short: copy or export the bundle again"
        )
    try:
        facts = read_onnx(file)
    except ValueError as error:
        raise BundleError(f"{file}: not an ONNX file: {error}; export the bundle again") from error
    if facts.has_external_data:
        raise BundleError(
            f"{file}: the network stores weights in another file, which no SHA-256 covers; save it as one file"
        )
    if kind == "image" and facts.num_channels not in (None, num_classes):
        raise BundleError(
            f"{file}: the network has {facts.num_channels} classes, but {MANIFEST_NAME} names {num_classes}; "
            "write the names of exactly the network's classes, or export the bundle again"
        )


def write_manifest(directory: str | Path, manifest: Manifest) -> Manifest:
    """Write bundle.yaml beside the ONNX files, with their SHA-256, and return it as written.

    The file appears whole or not at all, so that a reader never sees half of one. Raises FileNotFoundError.
    """
    folder = Path(directory)
    data = manifest.model_dump(mode="json")
    for engine in data["engines"].values():
        engine["sha256"] = sha256_of(folder / engine["file"])
    write_atomic(folder / MANIFEST_NAME, to_yaml(data))
    return load_yaml(folder / MANIFEST_NAME, Manifest)


def _check_pixels(input_hw: tuple[int, int], batch: int) -> None:
    if (pixels := batch * input_hw[0] * input_hw[1]) > MAX_INPUT_PIXELS:
        raise ValueError(f"received {pixels} pixels in one call of the network, expected at most {MAX_INPUT_PIXELS}")


def _engine_files(manifest: Manifest) -> dict[EngineKind, EngineFile]:
    engines = manifest.engines
    return {"image": engines.image, "hardness": engines.hardness, "region": engines.region}
