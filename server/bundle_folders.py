"""Where bundles lie: folders that the operator names, and the versions of a repository.

A repository holds each version of a model in a folder of its own: NAME/VERSION/bundle.json. The
name of the folder is the version that is served, whatever the bundle says of itself.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from models.bundle import (
    MANIFEST,
    TOKENIZER,
    TORCH_WEIGHTS,
    Bundle,
    BundleError,
    Manifest,
    load_bundle,
)
from server.choice import version_order
from server.settings import Settings

log = logging.getLogger(__name__)

NETWORK_FILES = (".onnx", TOKENIZER, TORCH_WEIGHTS)
NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


class BundleSource(NamedTuple):
    """A bundle as every process of the server is to load it.

    Attributes:
        name: The model's name.
        version: The version that it is served as.
        folder: Where it lies.
        sha256: Of its manifest, which holds the hashes of all other files.
        network: Hash of what must stay while it is served. Schedulers may be fitted anew.
    """

    name: str
    version: str
    folder: Path
    sha256: str
    network: str


class FoundBundle(NamedTuple):
    """A verified bundle, and how the other processes find it."""

    source: BundleSource
    bundle: Bundle


def find_bundle(folder: Path, name: str | None = None, version: str | None = None) -> FoundBundle:
    """Load and verify the bundle in a folder.

    Args:
        folder: The bundle's.
        name: The name that it must have; None: any.
        version: The version to serve it as; None: its own.

    Raises:
        BundleError: If it is damaged, or has another name.
    """
    sha256 = _hash(folder)
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    if name is not None and manifest.name != name:
        raise BundleError(
            f"{folder} holds a bundle of the model {manifest.name!r}; move it to the folder of "
            f"{manifest.name!r}, or change the name in its {MANIFEST}"
        )
    if version not in (None, manifest.version):
        log.info(
            "%s is served as version %s, as its folder is named; its %s says version %s",
            *(folder, version, MANIFEST, manifest.version),
        )
    version = version or manifest.version
    source = BundleSource(manifest.name, version, folder, sha256, _network(manifest))
    return FoundBundle(source, _as_version(bundle, version))


def open_source(source: BundleSource) -> Bundle:
    """Load and verify a bundle that `find_bundle` has found.

    Raises:
        BundleError: If it is damaged, or holds another network by now.
    """
    bundle = load_bundle(source.folder)
    if _network(bundle.manifest) != source.network:
        raise BundleError(
            f"{source.folder} holds another network than when it was read; put a changed network "
            f"into a new version folder, and load the model again"
        )
    return _as_version(bundle, source.version)


def find_bundles(folders: Iterable[Path]) -> list[FoundBundle]:
    """Load and verify the bundles that the operator names.

    Raises:
        ValueError: If one cannot be read, or two have one name and version.
    """
    found: dict[tuple[str, str], FoundBundle] = {}
    for folder in folders:
        each = find_bundle(folder)
        name, version = each.source.name, each.source.version
        if (name, version) in found:
            raise ValueError(
                f"two bundles are named {name!r} and have version {version!r}; change either in "
                f"one {MANIFEST}"
            )
        found[name, version] = each
    return list(found.values())


def name_repeats(folders: Iterable[Path]) -> bool:
    """Whether several bundles have one name; those that cannot be read do not count."""
    names = []
    for folder in folders:
        with suppress(OSError, ValueError, KeyError, TypeError):
            names.append(json.loads((folder / MANIFEST).read_bytes())["name"])
    return len(set(map(str, names))) < len(names)


def _as_version(bundle: Bundle, version: str) -> Bundle:
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"version": version}))


def _network(manifest: Manifest) -> str:
    """Hash the interface and the files of a bundle's network."""
    files = sorted((n, f.sha256) for n, f in manifest.files.items() if n.endswith(NETWORK_FILES))
    interface = manifest.model_dump_json(include={"name", "task", "classes", "num_exits", "inputs"})
    return hashlib.sha256(json.dumps([interface, files]).encode()).hexdigest()


def _hash(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""  # loading the bundle says what is wrong


class RepositoryFolder:
    """The models in a folder, by name and version.

    Args:
        path: The folder; None: there is no repository.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Return the names of the models that have a version."""
        return [name for name in _folders(self.path) if self.versions(name)]

    def versions(self, name: str) -> dict[str, Path]:
        """Return the folders of a model's versions, the latest last.

        A folder counts once it holds a manifest, which `eenet build` writes last.
        """
        if self.path is None or name not in _folders(self.path):
            return {}
        folder = self.path / name
        whole = [each for each in _folders(folder) if (folder / each / MANIFEST).is_file()]
        return {version: folder / version for version in sorted(whole, key=version_order)}


def _folders(path: Path | None) -> list[str]:
    """Return the names of the folders in a folder; links to folders count, hidden ones do not."""
    if path is None or not path.is_dir():
        return []
    return sorted(
        each.name for each in path.iterdir() if NAME.fullmatch(each.name) and each.is_dir()
    )


class VersionPolicy(NamedTuple):
    """Which versions of a model are served.

    Attributes:
        latest: So many of the latest; None: all.
        named: Those that are named instead.
    """

    latest: int | None = 1
    named: tuple[str, ...] | None = None

    def choose(self, versions: Sequence[str]) -> list[str]:
        """Return the versions to serve, of those that there are, the latest last.

        Raises:
            ValueError: If one that is named does not exist.
        """
        if self.named is not None:
            if missing := [each for each in self.named if each not in versions]:
                raise ValueError(
                    f"there is no version {missing[0]!r:.80}; there are {', '.join(versions)}"
                )
            return [each for each in versions if each in self.named]
        return list(versions if self.latest is None else versions[-self.latest :])


def policy_of_setting(text: str) -> VersionPolicy:
    """Return the policy that --version-policy names: `latest`, `latest:N` or `all`."""
    if text == "all":
        return VersionPolicy(None)
    return VersionPolicy(int(text.partition(":")[2] or 1))


def policy_of_triton(given: object) -> VersionPolicy:
    """Return the policy of a model configuration as Triton has it.

    Raises:
        ValueError: If it is none.
    """
    kind, details = None, None
    if isinstance(given, dict) and len(given) == 1:
        ((kind, details),) = given.items()
    match kind, details:
        case "all", {}:
            return VersionPolicy(None)
        case "latest", {"num_versions": int(count)} if count > 0:
            return VersionPolicy(count)
        case "specific", {"versions": [_, *_] as versions}:
            return VersionPolicy(None, tuple(str(version) for version in versions))
    raise ValueError(
        'version_policy is none of {"all": {}}, {"latest": {"num_versions": 1}} and '
        '{"specific": {"versions": [1]}}'
    )


def choose_folders(
    pinned: Mapping[str, Path], stored: Mapping[str, Path], policy: VersionPolicy
) -> dict[str, Path]:
    """Return the folders of a model's versions to serve, by version, the latest last.

    Args:
        pinned: Those of --bundle; always among them, unless the policy names versions.
        stored: Those of the repository; one takes the place of a pinned one of its version.
        policy: Which of them to serve.

    Raises:
        ValueError: If there is a model, but not a version that the policy names.
    """
    folders = {**pinned, **stored}
    if policy.named is None:
        chosen = {*pinned, *policy.choose(sorted(stored, key=version_order))}
    else:
        chosen = set(policy.choose(sorted(folders, key=version_order)) if folders else ())
    return {version: folders[version] for version in sorted(chosen, key=version_order)}


def bundles_at_start(settings: Settings) -> list[FoundBundle]:
    """Load and verify what a server starts with: --bundle, and --repository by --version-policy.

    Raises:
        ValueError: If a bundle is damaged, or two of --bundle have one name and version.
    """
    pinned = find_bundles(settings.bundle)
    found = {(each.source.name, each.source.version): each for each in pinned}
    repository = RepositoryFolder(settings.repository)
    policy = policy_of_setting(settings.version_policy)
    for name in repository.names():
        folders = choose_folders({}, repository.versions(name), policy)
        for version, folder in folders.items():
            found[name, version] = find_bundle(folder, name, version)
    return list(found.values())
