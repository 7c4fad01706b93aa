"""Models and bundles on the Hugging Face hub."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from models.bundle import Bundle, load_bundle

SCHEME = "hf://"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What an encoder needs. No code, no pickled weights, no copies for other runtimes.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
OTHER_RUNTIMES = ["onnx/*", "openvino/*", "coreml/*", "*.git*"]
Result = TypeVar("Result")


class Address(NamedTuple):
    """A repository of the hub, and one of its revisions; None: the newest."""

    name: str
    revision: str | None = None


def is_name(text: str) -> bool:
    """Return whether a text may be the name of a repository, ORG/NAME."""
    return NAME.fullmatch(text) is not None


def parse_address(text: str) -> Address:
    """Read `hf://ORG/NAME` or `hf://ORG/NAME@REVISION`.

    Raises:
        ValueError: If it is no such address.
    """
    name, at, revision = text.removeprefix(SCHEME).partition("@")
    if not is_name(name) or (at and not revision):
        raise ValueError(f"{text} is no address of a bundle; give hf://ORG/NAME[@REVISION]")
    return Address(name, revision or None)


def download_model(address: Address) -> Path:
    """Download the configuration, tokenizer and safetensors of an encoder.

    Returns:
        The folder of that revision in huggingface_hub's own cache, named after the commit.

    Raises:
        ValueError: If it cannot be reached, or has no safetensors.
    """
    folder = _snapshot(address, MODEL_FILES, OTHER_RUNTIMES)
    check_safetensors(folder, address.name)
    return folder


def check_safetensors(folder: Path, name: str) -> None:
    """Refuse a model whose weights are pickled, which can run code when they are read.

    Raises:
        ValueError: If the folder holds no safetensors.
    """
    if not any(folder.rglob("*.safetensors")):
        raise ValueError(
            f"{name} has no .safetensors, and pickled weights are not read; save it again with "
            f"save_pretrained, or give a revision that has them"
        )


def download_bundle(address: Address, cache: Path) -> Path:
    """Download a bundle; one that has been downloaded is not copied again.

    Args:
        address: Its repository.
        cache: The folder below which bundles lie, by name and commit.

    Raises:
        ValueError: If it cannot be reached, or is no bundle.
    """
    snapshot = _snapshot(address, None, ["*.git*"])
    folder = cache / "bundles" / f"{address.name.replace('/', '--')}@{snapshot.name[:12]}"
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(snapshot, part)  # the hub's cache holds links, which bundles may not
        try:
            load_bundle(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def push_bundle(bundle: Bundle, name: str, *, private: bool, revision: str | None) -> str:
    """Upload a bundle to a repository, which is created if there is none.

    Args:
        bundle: The bundle, verified.
        name: `ORG/NAME`.
        private: Whether a new repository is private.
        revision: Branch; None: the main one.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the name is none, or the hub refuses.
    """
    from huggingface_hub import HfApi

    if not is_name(name):
        raise ValueError(f"{name!r} is no name of a repository; give ORG/NAME")
    api = HfApi()

    def push() -> Any:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=name,
            folder_path=bundle.folder,
            revision=revision,
            commit_message=f"Bundle {bundle.manifest.name}",
        )

    return str(_asking(name, push).oid)


def _snapshot(address: Address, allow: list[str] | None, ignore: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(
            address.name,
            revision=address.revision,
            allow_patterns=allow,
            ignore_patterns=ignore,
        )

    return Path(_asking(address.name, download))


def _asking(name: str, ask: Callable[[], Result]) -> Result:
    """Ask the hub; what it refuses becomes one sentence."""
    from huggingface_hub import constants, errors

    try:
        return ask()
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name} is gated: accept its terms on {constants.ENDPOINT}, and give HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name} is not on {constants.ENDPOINT}, or private: check the name, and HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name} has no such revision; give a branch, tag or commit") from error
    except (errors.HfHubHTTPError, OSError) as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{constants.ENDPOINT} does not give {name}: {first}") from error
