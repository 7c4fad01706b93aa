"""Read an entry of a Triton model repository: which ONNX file it serves, and its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from models.bundle import TOKENIZER
from models.onnx_import.preprocessing import PROCESSOR
from models.onnx_import.text_proto import Message, parse

CONFIG = "config.pbtxt"
DEFAULT_FILE = "model.onnx"
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
# Settings of how Triton runs a model; they change no answer.
IGNORED = (
    "runtime",
    "optimization",
    "dynamic_batching",
    "instance_group",
    "cc_model_filenames",
    "metric_tags",
    "parameters",
    "model_warmup",
    "model_operations",
    "model_repository_agents",
    "response_cache",
    "model_metrics",
)
READ = (
    "name",
    "platform",
    "backend",
    "version_policy",
    "max_batch_size",
    "input",
    "output",
    "default_model_filename",
    "model_transaction_policy",
)
REFUSED = {
    "ensemble_scheduling": "it is an ensemble; import the entry of the classifier itself",
    "sequence_batching": "it keeps a state between requests; only classifiers without are served",
    "batch_input": "its inputs are made from the batch; export the network without them",
    "batch_output": "its outputs are scattered over the batch; export the network without that",
}
OTHER_BACKENDS = {
    "ensemble": "it is an ensemble; import the entry of the classifier itself",
    "python": "Python code of its own is not run; export its network as ONNX",
    "pytorch_libtorch": "export the network as ONNX, with torch.onnx.export",
    "pytorch": "export the network as ONNX, with torch.onnx.export",
    "tensorrt_plan": "a plan fits one kind of GPU; import the ONNX file that it was made from",
    "tensorrt": "a plan fits one kind of GPU; import the ONNX file that it was made from",
}
FLAGS = ("is_shape_tensor", "is_non_linear_format_io", "allow_ragged_batch")  # of odd tensors
TENSOR_FIELDS = ("name", "data_type", "dims", "reshape", *FLAGS)
INPUT_FIELDS = (*TENSOR_FIELDS, "format", "optional")
OUTPUT_FIELDS = (*TENSOR_FIELDS, "label_filename")
NO_FORMAT = "FORMAT_NONE"
FORMATS = (NO_FORMAT, "FORMAT_NHWC", "FORMAT_NCHW")
TYPES = (
    *("TYPE_BOOL", "TYPE_STRING", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_BF16"),
    *(f"TYPE_{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)),
)
TOKENS = ("TYPE_INT32", "TYPE_INT64")


class Tensor(NamedTuple):
    """An input or output as a configuration describes it.

    Attributes:
        name: Its name in the graph.
        data_type: As Triton calls it.
        dims: Its shape in the graph, without the rows if Triton batches; -1 where it varies.
        format: Order of an image's axes, one of `FORMATS`.
        label_filename: File of the names of classes; None: there is none.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    format: str
    label_filename: str | None


@dataclass(frozen=True)
class TritonEntry:
    """An entry whose model is one ONNX file.

    Attributes:
        name: Name of the model.
        version: The version that is taken.
        model: Its ONNX file.
        inputs: Inputs that the configuration describes; none: it leaves them to the graph.
        outputs: The same for outputs.
        max_batch_size: Most rows of a batch; 0: shapes include the rows.
        classes: Names of the classes in the network's order; None: the entry has none.
        preprocessing: Folder of the preprocessing; None: it is not in the entry, or lies beside
            the model.
        ignored: Settings that are not used.
    """

    name: str
    version: int
    model: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int
    classes: tuple[str, ...] | None
    preprocessing: Path | None
    ignored: tuple[str, ...]


def read_entry(folder: Path) -> TritonEntry:
    """Read an entry of a repository; the graph itself is not opened.

    Args:
        folder: NAME, with config.pbtxt and a folder for each version. The file may be absent.

    Raises:
        ValueError: If the folder is no entry, or not one of a single ONNX classifier.
    """
    config = _read_config(folder)
    where = config.where
    _check_backend(config)
    config.check_known({*READ, *IGNORED, *REFUSED})
    max_batch_size = config.number("max_batch_size", 0)
    inputs = tuple(_tensor(each, INPUT_FIELDS) for each in config.messages("input"))
    outputs = tuple(_tensor(each, OUTPUT_FIELDS) for each in config.messages("output"))
    _check_inputs(inputs, where)
    version = _version(folder, config.message("version_policy"))
    file = _inside(config.text("default_model_filename") or DEFAULT_FILE, where)
    return TritonEntry(
        config.text("name") or folder.resolve().name,
        version,
        _model_file(folder / str(version) / file),
        inputs,
        outputs,
        max_batch_size,
        _classes(folder, outputs, where),
        _preprocessing(folder, folder / str(version)),
        tuple(name for name in IGNORED if name in config),
    )


def _read_config(folder: Path) -> Message:
    path = folder / CONFIG
    if path.is_file():
        try:
            return parse(path.read_text("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from error
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give NAME of a repository NAME/1/{DEFAULT_FILE}")
    if not _versions(folder):
        entries = sorted(each.parent.name for each in folder.glob(f"*/{CONFIG}"))
        hint = f"; it is a repository, give one of its entries {', '.join(entries)}"
        raise ValueError(
            f"{folder} has neither {CONFIG} nor a folder of a version{hint if entries else ''}"
        )
    return Message(str(path))


def _check_backend(config: Message) -> None:
    for name, remedy in REFUSED.items():
        if name in config:
            raise ValueError(f"{config.where} has {name}: {remedy}")
    for name, own in (("platform", PLATFORM), ("backend", BACKEND)):
        given = config.text(name)
        if given and given != own:
            remedy = OTHER_BACKENDS.get(given, "export the network as ONNX")
            raise ValueError(
                f"{config.where}: {name} is {given!r}; only {own!r} can be imported: {remedy}"
            )
    policy = config.message("model_transaction_policy")
    if policy is not None and policy.word("decoupled") in ("true", "True", "t", "1"):
        raise ValueError(
            f"{config.where} is decoupled: it answers a request several times or never; only "
            f"classifiers with one answer are served"
        )


def _tensor(message: Message, known: Sequence[str]) -> Tensor:
    message.check_known(known)
    name, data_type = message.text("name"), message.word("data_type")
    where = f"{message.where}: {name!r}"
    if not name or data_type not in TYPES:
        raise ValueError(
            f"{where} has the data_type {data_type}; each input and output has a name and one of "
            f"{', '.join(TYPES)}"
        )
    form = message.word("format") or NO_FORMAT
    if form not in FORMATS:
        raise ValueError(f"{where} has the format {form}; give one of {', '.join(FORMATS)}")
    for flag in FLAGS:
        if message.word(flag) not in (None, "false"):
            raise ValueError(f"{where} has {flag}; only plain tensors are served")
    reshape = message.message("reshape")
    dims = message.numbers("dims") if reshape is None else reshape.numbers("shape")
    return Tensor(name, data_type, dims, form, message.text("label_filename"))


def _check_inputs(inputs: Sequence[Tensor], where: str) -> None:
    """Refuse inputs that are neither one image nor tokens."""
    for tensor in inputs:
        if tensor.data_type == "TYPE_STRING":
            raise ValueError(
                f"{where}: the input {tensor.name!r} is TYPE_STRING; import a network of token ids "
                f"(--preprocessing names its tokenizer), the server tokenises"
            )
    if len(inputs) > 1 and not all(tensor.data_type in TOKENS for tensor in inputs):
        raise ValueError(
            f"{where} has the inputs {', '.join(each.name for each in inputs)}; a network is "
            f"served that reads one image, or token ids with their mask and token types"
        )


def _versions(folder: Path) -> list[int]:
    """The versions that Triton sees: numbers without a leading 0."""
    names = [each.name for each in folder.iterdir() if each.is_dir()]
    return sorted(int(n) for n in names if n.isascii() and n.isdecimal() and not n.startswith("0"))


def _version(folder: Path, policy: Message | None) -> int:
    """The highest version that the policy allows."""
    found = _versions(folder)
    if not found:
        raise ValueError(f"{folder} has no folder of a version, such as {folder / '1'}")
    if policy is None:
        return found[-1]
    policy.check_known(("latest", "all", "specific"))
    if len(policy.fields) != 1:
        raise ValueError(f"{policy.where}: version_policy should be one of latest, all, specific")
    specific = policy.message("specific")
    if specific is None:
        return found[-1]
    specific.check_known(("versions",))
    wanted = specific.numbers("versions")
    allowed = [version for version in found if version in wanted]
    if not allowed:
        raise ValueError(
            f"{policy.where}: version_policy asks for the versions {', '.join(map(str, wanted))}; "
            f"{folder} has {', '.join(map(str, found))}"
        )
    return allowed[-1]


def _model_file(path: Path) -> Path:
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, of a model with weights in other files; export it with weights "
            f"inside (docs/own-models.md)"
        )
    if not path.is_file():
        held = ", ".join(sorted(each.name for each in path.parent.iterdir())) or "nothing"
        raise ValueError(
            f"{path} does not exist; the folder holds {held}; only ONNX models can be imported"
        )
    return path


def _inside(name: str, where: str) -> str:
    """Refuse names of files that lie elsewhere."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where} names the file {name!r}; it should lie inside the entry")
    return name


def _classes(folder: Path, outputs: Sequence[Tensor], where: str) -> tuple[str, ...] | None:
    """Names of the classes from the files of labels."""
    names = {each.label_filename for each in outputs if each.label_filename}
    read = dict[str, tuple[str, ...]]()
    for name in sorted(names):
        path = folder / _inside(name, where)
        if not path.is_file():
            raise ValueError(f"{where} names the labels {name!r}, but {path} does not exist")
        lines = path.read_text("utf-8-sig").rstrip().split("\n")
        read[name] = tuple(line.strip() for line in lines)
        if len(set(read[name])) < len(lines) or "" in read[name]:
            raise ValueError(
                f"{path} has empty or equal lines; it should have one class per line; give "
                f"--class-names"
            )
    if len(set(read.values())) > 1:
        raise ValueError(f"{', '.join(read)} name different classes; exits have the same classes")
    return next(iter(read.values()), None)


def _preprocessing(folder: Path, version: Path) -> Path | None:
    """The entry's folder if it describes the preprocessing, and the version's does not."""
    files = (PROCESSOR, TOKENIZER)
    if any((version / name).is_file() for name in files):
        return None
    return folder if any((folder / name).is_file() for name in files) else None
