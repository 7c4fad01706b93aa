"""Write, load and verify bundles: folders that hold everything needed to serve a model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from models.preprocess import ImagePreprocessor, TextPreprocessor

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
TORCH_WEIGHTS = "weights.safetensors"
Task = Literal["image", "text", "segmentation"]
Weights = Literal["float32", "float16", "int8"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class BundleError(ValueError):
    """A bundle is missing, damaged or of another version; the message names the file."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Version(BaseModel):
    format_version: int


class ImageInput(_Strict):
    """Size and normalisation of the network's input."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["cover", "stretch"] = "cover"


class TextInput(_Strict):
    """Truncation and padding of texts; the fields of `TextPreprocessor`."""

    max_tokens: int = Field(gt=0)
    pad_id: int = Field(ge=0)
    length_step: int = Field(gt=0)
    typical_tokens: int = Field(gt=0)


def _input_kind(value: object) -> str:
    is_text = "max_tokens" in value if isinstance(value, dict) else isinstance(value, TextInput)
    return "text" if is_text else "image"


class Measured(_Strict):
    """Test accuracy and median latency until each exit, for one storage type of the weights."""

    accuracy: tuple[float, ...]
    latency_ms: tuple[float, ...]


class File(_Strict):
    """Size and hash of one file."""

    bytes: int
    sha256: str


class StoredNetwork(_Strict):
    """Architecture and settings that rebuild the network in torch, as in `families.Network`."""

    arch: str
    settings: dict[str, Any]


class Manifest(_Strict):
    """Content of `bundle.json`.

    Attributes:
        format_version: Version of this layout.
        name: The model's name in requests.
        version: The model's version in responses.
        task: The model's task.
        classes: Names of the C classes.
        num_exits: Number of exits, K.
        preprocessing: Settings of the preprocessing.
        default_budget_ms: Budget if the operator sets none; None: no budget.
        weights: Storage type of the graphs' weights.
        measured: Accuracy and latency by storage type: that of the graphs, and single precision for
            comparison.
        network: The network in torch, if the bundle holds its weights, else None.
        training: Origin and accuracy of the network, for people to read.
        files: Every other file of the bundle, by path.
    """

    format_version: int
    name: Name
    version: str
    task: Task
    classes: tuple[str, ...] = Field(min_length=2)
    num_exits: int = Field(gt=0)
    preprocessing: Annotated[
        Annotated[ImageInput, Tag("image")] | Annotated[TextInput, Tag("text")],
        Discriminator(_input_kind),
    ]
    default_budget_ms: float | None = Field(gt=0, allow_inf_nan=False)
    weights: Weights = "float32"
    measured: dict[Weights, Measured] = {}
    network: StoredNetwork | None = None
    training: dict[str, Any]
    files: dict[str, File]

    @model_validator(mode="after")
    def _task_fits_input(self) -> "Manifest":
        if (self.task == "text") != isinstance(self.preprocessing, TextInput):
            raise ValueError(f"the preprocessing does not fit the task {self.task}")
        return self

    @model_validator(mode="after")
    def _network_has_weights(self) -> "Manifest":
        if (self.network is None) != (TORCH_WEIGHTS not in self.files):
            raise ValueError(f"network and {TORCH_WEIGHTS} must both be there, or neither")
        return self


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    folder: Path
    manifest: Manifest

    @property
    def stage_files(self) -> list[Path]:
        """Files of the K stage graphs."""
        return [self.folder / f"stages/{k}.onnx" for k in range(self.manifest.num_exits)]

    @property
    def head_files(self) -> list[Path]:
        """Files of the K exit heads."""
        return [self.folder / f"heads/{k}.onnx" for k in range(self.manifest.num_exits)]

    @property
    def torch_weights(self) -> Path | None:
        """File of the torch weights, or None if the bundle holds none."""
        return None if self.manifest.network is None else self.folder / TORCH_WEIGHTS

    def preprocessor(self, max_pixels: int) -> ImagePreprocessor | TextPreprocessor:
        """Create the preprocessor of images or texts for this network.

        Args:
            max_pixels: Largest image that it decodes.

        Raises:
            ValueError: If the tokenizer cannot be read.
        """
        settings = self.manifest.preprocessing.model_dump()
        if isinstance(self.manifest.preprocessing, TextInput):
            return TextPreprocessor(self.folder / TOKENIZER, **settings)
        return ImagePreprocessor(**settings, max_pixels=max_pixels)


def write_manifest(folder: Path, **fields: Any) -> Bundle:
    """Hash every file of a finished bundle and write its manifest.

    Args:
        folder: The bundle's folder.
        **fields: The fields of `Manifest` except the format version and the files.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(folder).as_posix(): _describe(path) for path in paths}
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **fields)
    part = folder / f".{MANIFEST}.part"
    part.write_text(manifest.model_dump_json(indent=1) + "\n")
    part.replace(folder / MANIFEST)
    return Bundle(folder, manifest)


def rewrite_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Hash the files of a changed bundle again; fields that are not in `changes` stay."""
    kept = bundle.manifest.model_dump(exclude={"format_version", "files"})
    return write_manifest(bundle.folder, **kept | changes)


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle and verify its hashes.

    Raises:
        BundleError: If a file is missing, changed, unknown or outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{path} does not exist; give a folder that `eenet build` has written")
    text = path.read_bytes()
    try:
        # A newer format may have other fields, so the version is checked before them.
        version = _Version.model_validate_json(text).format_version
        manifest = Manifest.model_validate_json(text) if version == FORMAT_VERSION else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"{path} is not a bundle manifest: {where}: {first['msg']}; build the bundle again"
        ) from error
    if manifest is None:
        raise BundleError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}; build the "
            f"bundle again"
        )
    bundle = Bundle(folder, manifest)
    _check_listed(bundle)
    for name, expected in manifest.files.items():
        _check_file(folder, name, expected)
    return bundle


def _check_listed(bundle: Bundle) -> None:
    graphs = [*bundle.stage_files, *bundle.head_files]
    needed = [path.relative_to(bundle.folder).as_posix() for path in graphs]
    if bundle.manifest.task == "text":
        needed.append(TOKENIZER)
    for name in [*needed, "scheduler.json", "scheduler.npz", "calibration.npz", "profile.json"]:
        if name not in bundle.manifest.files:
            raise BundleError(
                f"{bundle.folder / MANIFEST} does not list {name}; build the bundle again"
            )


def _check_file(folder: Path, name: str, expected: File) -> None:
    pure = PurePosixPath(name)
    if (
        "\0" in name
        or pure.is_absolute()
        or ".." in pure.parts
        or not (folder / name).resolve().is_relative_to(folder.resolve())
    ):
        raise BundleError(
            f"{folder / MANIFEST} lists {name!r}, which is outside the bundle; do not trust this "
            f"bundle"
        )
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy or build the bundle again")
    if path.stat().st_size != expected.bytes or _describe(path).sha256 != expected.sha256:
        raise BundleError(
            f"{path} is damaged (its size or SHA-256 differs from {MANIFEST}); copy or build the "
            f"bundle again"
        )


def _describe(path: Path) -> File:
    data = path.read_bytes()
    return File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
