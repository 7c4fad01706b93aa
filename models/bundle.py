"""Write, load and verify bundles: folders that hold everything needed to serve a model.

docs/bundle.md describes the format.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ValidationError,
    model_validator,
)

from models.preprocess import ImagePreprocessor, TextPreprocessor
from models.several_inputs import SeveralImages, SeveralTexts

FORMAT_VERSION = 2
OLD_FORMAT_VERSION = 1
MANIFEST = "bundle.json"
CARD = "README.md"  # for people; nothing lists it, so that they may edit it
TOKENIZER = "tokenizer.json"
TORCH_WEIGHTS = "weights.safetensors"
PROFILE, KNOWN_ANSWERS, PREDICTIONS = "profile.json", "known_answers.npz", "predictions.npz"
MAX_EXITS = 1000
SCHEDULER_FILES = ("scheduler.json", "scheduler.npz")
LABEL_FREE = "-label-free"  # ends the names of schedulers that are fitted to the last exit
Task = Literal["image", "text", "segmentation"]
Precision = Literal["float32", "float16", "int8"]
Threshold = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


def _inside(path: str) -> str:
    """Accept only paths that stay below the folder they are relative to."""
    pure = PurePosixPath(path)
    if "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{path!r} is outside the bundle")
    return path


Place = Annotated[str, AfterValidator(_inside)]


class BundleError(ValueError):
    """A bundle is missing, damaged or of another version; the message names the file."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Version(BaseModel):
    format_version: int


class ImageInput(_Strict):
    """Size and normalisation of an image.

    Attributes:
        kind: Tells images from texts.
        dtype: Type of the first stage's input. `float32`: normalised, (N, 3, H, W). `uint8`: pixels
            (N, H, W, 3), which the first stage normalises.
        height: Height, H.
        width: Width, W.
        mean: Mean of each channel, on a scale of 0 to 1.
        std: Standard deviation of each channel.
        fit: As in `ImagePreprocessor`.
        crop: As in `ImagePreprocessor`. Manifests leave it out if it is 1, as versions before this
            field did.
    """

    kind: Literal["image"] = "image"
    dtype: Literal["float32", "uint8"] = "float32"
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["cover", "stretch"] = "cover"
    crop: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda crop: crop == 1)


class TextInput(_Strict):
    """Truncation and padding of a text; the fields of `TextPreprocessor`."""

    kind: Literal["text"] = "text"
    max_tokens: int = Field(gt=0)
    pad_id: int = Field(ge=0)
    length_step: int = Field(gt=0)
    typical_tokens: int = Field(gt=0)
    pair: bool = False


Input = Annotated[ImageInput | TextInput, Discriminator("kind")]


class Measured(_Strict):
    """Accuracy on the test rows and median latency in ms until each exit, (K,) each."""

    accuracy: tuple[float, ...]
    latency_ms: tuple[float, ...]


class VariantEntry(_Strict):
    """One precision of a bundle, as in its manifest; paths are relative to the bundle.

    Attributes:
        folder: Folder of its graphs, its profile and its known answers; empty for the bundle's own.
        predictions: File with its predictions of the calibration, certification and test rows.
        schedulers: Folders of the schedulers fitted to these predictions, by policy. The name of
            one that is fitted to the last exit's answers in place of labels ends in `-label-free`.
        policy: The policy that a server starts with, one of `schedulers`.
        default_budget_ms: Suggested budget in ms, information only; None: no suggestion.
        row_independent: Whether a row's output is the same alone and in any batch. If not, a
            backend runs one row at a time.
        measured: Accuracy and latency of these graphs.
        method: How the precision was reached, for people to read.
    """

    folder: Place
    predictions: Place
    schedulers: dict[str, Place] = Field(min_length=1)
    policy: str
    default_budget_ms: float | None = Field(gt=0, allow_inf_nan=False)
    row_independent: bool = True
    measured: Measured | None = None
    method: dict[str, Any] = {}

    @model_validator(mode="after")
    def _policy_is_fitted(self) -> "VariantEntry":
        if self.policy not in self.schedulers:
            raise ValueError(
                f"policy {self.policy!r} is none of schedulers {list(self.schedulers)}"
            )
        return self


class File(_Strict):
    """Size and hash of one file."""

    bytes: int
    sha256: str


class StoredNetwork(_Strict):
    """Architecture and settings that rebuild the network in torch, as in `families.Network`."""

    arch: str
    settings: dict[str, Any]


class CascadeMember(_Strict):
    """One network of a cascade, as in the manifest.

    Attributes:
        name: The name of the bundle that it came from, for people to read.
        version: That bundle's version.
        first_stage: Its first stage, which reads an input of the request.
        input: That input, by its field.
    """

    name: str
    version: str
    first_stage: int = Field(ge=0)
    input: str


class Manifest(_Strict):
    """Content of `bundle.json`.

    Attributes:
        format_version: Version of this layout.
        name: The model's name in requests.
        version: The model's version in responses.
        task: The model's task.
        classes: Names of the C classes.
        num_exits: Number of exits, K.
        thresholds: For rows that may have several classes: the probability of each class from which
            on a row has it, at each exit, (K, C). None: a row has one class.
        inputs: What networks make of a request, by field. A cascade may have several, each made
            of the same image or text; other bundles have one.
        cascade: The networks of a cascade, in order; empty for a single network.
        precisions: The variants of the network, one per precision.
        trained: Accuracy and latency of the network as it was trained, in single precision.
        network: The network in torch, if the bundle holds its weights, else None.
        training: Origin and accuracy of the network, for people to read.
        files: Every other file of the bundle, by path.
    """

    format_version: int
    name: Name
    version: str
    task: Task
    classes: tuple[str, ...] = Field(min_length=2)
    num_exits: int = Field(gt=0, le=MAX_EXITS)
    thresholds: tuple[tuple[Threshold, ...], ...] | None = None
    inputs: dict[str, Input] = Field(min_length=1)
    cascade: tuple[CascadeMember, ...] = ()
    precisions: dict[Precision, VariantEntry] = Field(min_length=1)
    trained: Measured | None = None
    network: StoredNetwork | None = None
    training: dict[str, Any]
    files: dict[str, File]

    @property
    def input(self) -> ImageInput | TextInput:
        """The input of the first stage."""
        return next(iter(self.inputs.values()))

    @model_validator(mode="after")
    def _task_fits_input(self) -> "Manifest":
        if len(self.inputs) > 1 and not self.cascade:
            raise ValueError(
                f"inputs are {', '.join(self.inputs)}; this version serves one input per request"
            )
        if any((self.task == "text") != isinstance(i, TextInput) for i in self.inputs.values()):
            raise ValueError(f"the input does not fit the task {self.task}")
        return self

    @model_validator(mode="after")
    def _thresholds_are_complete(self) -> "Manifest":
        if self.thresholds is not None:
            shape = [len(each) for each in self.thresholds]
            if shape != [len(self.classes)] * self.num_exits:
                raise ValueError("thresholds must hold one number for each exit and class")
        return self

    @model_validator(mode="after")
    def _cascade_is_whole(self) -> "Manifest":
        if not self.cascade:
            return self
        starts = [member.first_stage for member in self.cascade]
        stages = [*starts, self.num_exits]
        if starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(stages)):
            raise ValueError(
                f"the networks of the cascade start at the stages {starts}; they must rise from 0 "
                f"and end before num_exits, {self.num_exits}"
            )
        read = list(dict.fromkeys(member.input for member in self.cascade))
        if read != list(self.inputs):
            raise ValueError(
                f"the cascade reads the inputs {read}, but inputs has {list(self.inputs)}; they "
                f"must be the same, in the same order"
            )
        return self

    @model_validator(mode="after")
    def _network_has_weights(self) -> "Manifest":
        if (self.network is None) != (TORCH_WEIGHTS not in self.files):
            raise ValueError(f"network and {TORCH_WEIGHTS} must both be there, or neither")
        return self


@dataclass(frozen=True)
class Variant:
    """One precision of a verified bundle, and where its files are."""

    bundle: "Bundle"
    precision: Precision

    @property
    def entry(self) -> VariantEntry:
        """Its entry in the manifest."""
        return self.bundle.manifest.precisions[self.precision]

    @property
    def folder(self) -> Path:
        """Folder of its graphs."""
        return self.bundle.folder / self.entry.folder

    @property
    def stage_files(self) -> list[Path]:
        """Files of the K stage graphs."""
        return graph_files(self.folder, self.bundle.manifest.num_exits)[0]

    @property
    def head_files(self) -> list[Path]:
        """Files of the K exit heads."""
        return graph_files(self.folder, self.bundle.manifest.num_exits)[1]

    @property
    def profile(self) -> Path:
        """Latency of the graphs on the machine that built or last profiled the bundle."""
        return self.folder / PROFILE

    @property
    def predictions(self) -> Path:
        """Predictions of the graphs."""
        return self.bundle.folder / self.entry.predictions

    @property
    def known_answers(self) -> Path | None:
        """Inputs and the outputs they must have on every host; None if the bundle has none."""
        path = self.folder / KNOWN_ANSWERS
        return None if self.bundle.listed(path) is None else path

    def exit_bytes(self, exit: int) -> int:
        """Return the size of an exit's stage and head."""
        return sum(files[exit].stat().st_size for files in (self.stage_files, self.head_files))

    def scheduler(self, policy: str | None = None) -> Path:
        """Return the folder of a policy's scheduler, or of the one that a server starts with.

        Raises:
            BundleError: If none was fitted for this policy.
        """
        name = policy or self.entry.policy
        if name not in self.entry.schedulers:
            raise BundleError(
                f"{self.bundle.folder} holds no scheduler {name!r} for {self.precision}, only "
                f"{', '.join(self.entry.schedulers)}; fit it with `eenet fit --policy {name}`"
            )
        return self.bundle.folder / self.entry.schedulers[name]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    folder: Path
    manifest: Manifest

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions it holds, in the manifest's order."""
        return tuple(self.manifest.precisions)

    def variant(self, precision: Precision | None = None) -> Variant:
        """Return the network in a precision; by default the first of the manifest.

        Raises:
            BundleError: If the bundle does not hold it.
        """
        chosen = precision or self.precisions[0]
        if chosen not in self.manifest.precisions:
            raise BundleError(
                f"{self.folder} holds no {chosen} network, only {', '.join(self.precisions)}; "
                f"build it with `eenet build --precision {chosen}`"
            )
        return Variant(self, chosen)

    def listed(self, path: Path) -> File | None:
        """Return size and hash of one of the bundle's files; None if the manifest lacks it."""
        return self.manifest.files.get(path.relative_to(self.folder).as_posix())

    @property
    def torch_weights(self) -> Path | None:
        """File of the torch weights, or None if the bundle holds none."""
        return None if self.manifest.network is None else self.folder / TORCH_WEIGHTS

    def preprocessor(self, max_pixels: int, **bounds: Any) -> ImagePreprocessor | TextPreprocessor:
        """Create the preprocessor of images or texts for this network.

        Args:
            max_pixels: Largest image that it decodes.
            **bounds: Further bounds of `ImagePreprocessor`.

        Raises:
            ValueError: If the tokenizer cannot be read.
        """
        bounds = {"max_pixels": max_pixels, **bounds}
        names = list(self.manifest.inputs)
        if self.manifest.task == "text":
            first, *others = [self._text_settings(name) for name in names]
            if not others:
                return TextPreprocessor(**first)
            return SeveralTexts(
                **first, others=tuple([TextPreprocessor(**each) for each in others])
            )
        settings = [
            each.model_dump(exclude={"kind"}) | bounds for each in self.manifest.inputs.values()
        ]
        if len(settings) == 1:
            return ImagePreprocessor(**settings[0])
        first, *others = settings
        return SeveralImages(**first, others=tuple([ImagePreprocessor(**each) for each in others]))

    def _text_settings(self, name: str) -> dict[str, Any]:
        place = tokenizer_file(name, first=name == next(iter(self.manifest.inputs)))
        settings = self.manifest.inputs[name].model_dump(exclude={"kind"})
        return {"tokenizer": self.folder / place, **settings}


def tokenizer_file(name: str, *, first: bool) -> str:
    """Return the tokenizer's file of an input, by the input's field and whether it is the first."""
    return TOKENIZER if first else f"tokenizer-{name}.json"


def write_manifest(folder: Path, **fields: Any) -> Bundle:
    """Hash every file of a finished bundle and write its manifest.

    Args:
        folder: The bundle's folder.
        **fields: The fields of `Manifest` except the format version and the files.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    paths = [path for path in paths if path != folder / CARD]
    files = {path.relative_to(folder).as_posix(): _describe(path) for path in paths}
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **fields)
    part = folder / f".{MANIFEST}.part"
    # Programs that know no cascades read all other bundles.
    unused = None if manifest.cascade else {"cascade"}
    part.write_text(manifest.model_dump_json(indent=1, exclude=unused) + "\n")
    part.replace(folder / MANIFEST)
    return Bundle(folder, manifest)


def rewrite_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Hash the files of a changed bundle again; fields that are not in `changes` stay."""
    kept = bundle.manifest.model_dump(exclude={"format_version", "files"})
    return write_manifest(bundle.folder, **kept | changes)


def rewrite_entry(variant: Variant, **changes: Any) -> Bundle:
    """Hash the files of a changed variant again and change its entry in the manifest."""
    entries = dict(variant.bundle.manifest.precisions)
    entries[variant.precision] = VariantEntry(**variant.entry.model_dump() | changes)
    return rewrite_manifest(variant.bundle, precisions=entries)


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle and verify its hashes; one of format 1 is read as if it were of format 2.

    Raises:
        BundleError: If a file is missing, changed, unknown or outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{path} does not exist; give a folder that `eenet build` has written")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{path} is a link out of the bundle; do not trust this bundle")
    text = path.read_bytes()
    try:
        # A newer format may have other fields, so the version is checked before them.
        version = _Version.model_validate_json(text).format_version
        if version == OLD_FORMAT_VERSION:
            text = json.dumps(_from_format_1(json.loads(text), folder)).encode()
        elif version != FORMAT_VERSION:
            raise BundleError(
                f"{path} has format version {version}, this program reads {OLD_FORMAT_VERSION} and "
                f"{FORMAT_VERSION}; build the bundle again"
            )
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"{path} is not a bundle manifest: {where}: {first['msg']}; build the bundle again"
        ) from error
    bundle = Bundle(folder, manifest)
    _check_listed(bundle)
    for name, expected in manifest.files.items():
        _check_file(folder, name, expected)
    return bundle


def _from_format_1(old: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Describe a bundle of format 1, whose files lie in its folder, as one of format 2.

    Format 1 always computed in single precision. Its `weights` named how graphs stored weights.
    """
    new = dict(old)
    settings, weights = new.pop("preprocessing", None), new.pop("weights", "float32")
    measured, budget_ms = new.pop("measured", {}), new.pop("default_budget_ms", None)
    policy = _policy_of_format_1(folder)
    kind = "text" if new.get("task") == "text" else "image"
    return new | {
        "inputs": {kind: {**settings, "kind": kind} if isinstance(settings, dict) else settings},
        "precisions": {
            "float32": {
                "folder": "",
                "predictions": "calibration.npz",
                "schedulers": {policy: ""},
                "policy": policy,
                "default_budget_ms": budget_ms,
                "measured": measured.get(str(weights)) if isinstance(measured, dict) else measured,
                "method": {"storage": weights},
            }
        },
        "trained": measured.get("float32") if isinstance(measured, dict) else None,
    }


def _policy_of_format_1(folder: Path) -> str:
    """Read the policy of the only scheduler; what is wrong with its file, loading it will say."""
    try:
        return str(json.loads((folder / SCHEDULER_FILES[0]).read_bytes())["policy"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def graph_files(folder: Path, num_exits: int) -> tuple[list[Path], list[Path]]:
    """Return the files of the K stages and of the K heads in a folder, in the order of exits."""
    stages, heads = (
        [folder / f"{kind}/{k}.onnx" for k in range(num_exits)] for kind in ("stages", "heads")
    )
    return stages, heads


def _check_listed(bundle: Bundle) -> None:
    needed = [
        tokenizer_file(name, first=not place)
        for place, name in enumerate(bundle.manifest.inputs)
        if bundle.manifest.task == "text"
    ]
    for entry in bundle.manifest.precisions.values():
        folder = Path(entry.folder)
        stages, heads = graph_files(folder, bundle.manifest.num_exits)
        needed += [path.as_posix() for path in (*stages, *heads, folder / PROFILE)]
        needed.append(entry.predictions)
        needed += [
            (PurePosixPath(place) / name).as_posix()
            for place in entry.schedulers.values()
            for name in SCHEDULER_FILES
        ]
    for name in needed:
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
