"""The models that a server may load, swap and unload while it runs."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from models.bundle import Bundle
from server.bundle_folders import (
    BundleSource,
    FoundBundle,
    RepositoryFolder,
    VersionPolicy,
    bundles_at_start,
    choose_folders,
    find_bundle,
    policy_of_setting,
)
from server.choice import ModelTable, split_version, version_order
from server.errors import LoadRefused, UnknownModel
from server.memory import available_bytes, needed_bytes
from server.model import ModelControl
from server.problems import without_folders
from server.settings import Settings

log = logging.getLogger(__name__)

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
Key = tuple[str, str]  # name and version


class ModelHost(Protocol):
    """Runs models, in one process or in several."""

    @property
    def engines(self) -> int:
        """How many copies of a network it loads."""

    async def load(
        self, source: BundleSource, bundle: Bundle, predecessor: ModelControl | None
    ) -> None:
        """Serve a bundle, once everything that serves it has loaded it.

        Args:
            source: Where it lies.
            bundle: The same, verified.
            predecessor: Its budget holds for this one too; None: that of the settings.

        Raises:
            ValueError: If it cannot be served; then nothing has changed.
        """

    async def unload(self, model: ModelControl) -> None:
        """Serve a model no more: answer what it has, then give its memory back."""


class IndexEntry(NamedTuple):
    """A version of a model, loaded or not.

    Attributes:
        name: The model's.
        version: The version.
        state: Whether it is served.
        reason: Why it is not; empty where it is.
    """

    name: str
    version: str
    state: State
    reason: str


class Change(NamedTuple):
    """The versions of a model that a request has loaded and unloaded."""

    name: str
    loaded: list[str]
    unloaded: list[str]


class Repository:
    """Loads, swaps and unloads models, one after another.

    A client names a model and never a path: bundles come from the folders of --bundle and from
    --repository alone.

    Args:
        settings: The server's.
        models: Those that are served; the host adds and removes them.
        host: Runs them.
        available: Returns the bytes of memory that may still be taken; None: unknown.
    """

    def __init__(
        self,
        settings: Settings,
        models: ModelTable[ModelControl],
        host: ModelHost,
        available: Callable[[], int | None] = available_bytes,
    ) -> None:
        self._models, self._host, self._available = models, host, available
        self._folder = RepositoryFolder(settings.repository)
        self._policy = policy_of_setting(settings.version_policy)
        self._settings = settings
        self._pinned: list[BundleSource] = []  # those of --bundle
        self._sources: dict[Key, BundleSource] = {}  # of what is loaded
        self._moving: dict[Key, State] = {}
        self._failures: dict[Key, str] = {}
        self._lock = asyncio.Lock()

    def begin(self) -> list[FoundBundle]:
        """Return what a server starts with; blocks.

        Raises:
            ValueError: If a bundle cannot be served.
        """
        found = bundles_at_start(self._settings)
        sources = [each.source for each in found]
        self._pinned = [each for each in sources if each.folder in self._settings.bundle]
        self._sources = {(each.name, each.version): each for each in sources}
        return found

    def index(self) -> list[IndexEntry]:
        """Return every version that there is, by name and version."""
        known = {(each.name, each.version) for each in self._pinned}
        known |= {(name, v) for name in self._folder.names() for v in self._folder.versions(name)}
        known |= self._sources.keys() | self._moving.keys()
        served = {(each.name, each.version) for each in self._models}
        entries = []
        for name, version in sorted(known, key=lambda key: (key[0], version_order(key[1]))):
            key = name, version
            state: State = self._moving.get(key, "READY" if key in served else "UNAVAILABLE")
            reason = "" if state == "READY" else self._failures.get(key, state.lower())
            reason = "not loaded" if reason == "unavailable" else reason
            entries.append(IndexEntry(name, version, state, reason))
        return entries

    async def load(self, name: str, policy: VersionPolicy | None = None) -> Change:
        """Serve the versions of a model that there are now, in place of those that are served.

        Old versions are unloaded once the new ones answer, so that no request fails. The change
        goes on if the caller is cancelled: its client may have left.

        Args:
            name: The model's; as `NAME@VERSION`, this version is served beside the others.
            policy: Which versions to serve; None: those of --version-policy.

        Raises:
            UnknownModel: If there is no such model.
            LoadRefused: If it cannot be served; then the versions before stay.
        """
        return await self._to_the_end(self._load(name, policy))

    async def unload(self, name: str) -> Change:
        """Serve a model no more, or one version of it; as `load`, this goes on in any case.

        Args:
            name: The model's, as `NAME` or `NAME@VERSION`.

        Raises:
            UnknownModel: If it is not loaded.
            LoadRefused: If the server would be left without a model.
        """
        return await self._to_the_end(self._unload(name))

    async def _to_the_end(self, change: Coroutine[None, None, Change]) -> Change:
        task = asyncio.ensure_future(change)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)

    async def _load(self, name: str, policy: VersionPolicy | None) -> Change:
        name, version = split_version(name, None)
        policy = policy or self._policy
        if version is not None:
            policy = VersionPolicy(None, (version,))
        async with self._lock:
            with _refusing(name):
                wanted = await asyncio.to_thread(self._wanted, name, policy)
            if not wanted:
                raise UnknownModel(self._unknown(name))
            before = self._models.versions(name)
            fresh = [each for each in wanted if self._is_new(each.source)]
            await self._load_all(fresh, before)
            new = {each.source.version for each in fresh}
            kept = {each.source.version for each in wanted}
            if version is not None:
                kept |= {model.version for model in before}
            old = [model for model in before if model.version in new or model.version not in kept]
            for model in old:
                await self._unload_one(model)
            gone = {model.version for model in old} - new
            self._failures = {key: why for key, why in self._failures.items() if key[0] != name}
            log.info("%s: loaded versions %s, unloaded %s", name, sorted(new), sorted(gone))
            return Change(name, _in_order(new), _in_order(gone))

    async def _unload(self, name: str) -> Change:
        async with self._lock:
            found = self._models.find(name)
            old = [found] if "@" in name else self._models.versions(found.name)
            if len(old) == len(self._models):
                raise LoadRefused(
                    f"{name} is all that this server has loaded; load another model before, or "
                    f"stop the server"
                )
            for model in old:
                await self._unload_one(model)
            return Change(found.name, [], [model.version for model in old])

    def _is_new(self, source: BundleSource) -> bool:
        return self._sources.get((source.name, source.version)) != source

    def _wanted(self, name: str, policy: VersionPolicy) -> list[FoundBundle]:
        """Return the versions of a model to serve; their bundles are verified."""
        pinned = {each.version: each.folder for each in self._pinned if each.name == name}
        folders = choose_folders(pinned, self._folder.versions(name), policy)
        return [self._find(folder, name, version) for version, folder in folders.items()]

    def _find(self, folder: Path, name: str, version: str) -> FoundBundle:
        try:
            return find_bundle(folder, name, version)
        except ValueError as error:
            self._failures[name, version] = without_folders(str(error), ())
            raise

    async def _load_all(self, fresh: Sequence[FoundBundle], before: Sequence[ModelControl]) -> None:
        """Load versions of a model; if one fails, unload those that were new."""
        done: list[BundleSource] = []
        try:
            for each in fresh:
                await self._load_one(each)
                done.append(each.source)
        except LoadRefused:
            for source in done:
                replaced = [model for model in before if model.version == source.version]
                new = self._models.find(source.name, source.version)
                await self._unload_one(replaced[0] if replaced else new)
            raise

    async def _load_one(self, found: FoundBundle) -> None:
        source, bundle = found
        key = source.name, source.version
        self._moving[key] = "LOADING"
        try:
            with _refusing(f"{source.name} version {source.version}"):
                self._check_memory(bundle)
                versions = self._models.versions(source.name)
                await self._host.load(source, bundle, versions[-1] if versions else None)
        except LoadRefused as error:
            self._failures[key] = error.detail
            raise
        finally:
            del self._moving[key]
        self._sources[key] = source

    async def _unload_one(self, model: ModelControl) -> None:
        key = model.name, model.version
        replaced = model not in self._models.values()  # by one of the same version
        if not replaced:
            self._moving[key] = "UNLOADING"
        try:
            await self._host.unload(model)
        finally:
            if not replaced:
                del self._moving[key], self._sources[key]

    def _check_memory(self, bundle: Bundle) -> None:
        needed, available = needed_bytes(bundle, self._host.engines), self._available()
        if available is not None and needed > available:
            raise ValueError(
                f"it takes about {needed >> 20} MiB, and {available >> 20} MiB are free; unload "
                f"another model before, or give this server more memory"
            )

    def _unknown(self, name: str) -> str:
        known = sorted({*self._folder.names(), *(each.name for each in self._pinned)})
        where = "--repository and --bundle" if self._folder.path else "--bundle"
        return (
            f"there is no model {name!r:.80} to load; {where} of this server have "
            f"{', '.join(known) or 'none'}"
        )


def _in_order(versions: Iterable[str]) -> list[str]:
    return sorted(versions, key=version_order)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Report what is wrong with a model as a refusal, without the folders of this host."""
    try:
        yield
    except ValueError as error:
        log.warning("the model is not loaded: %s: %s", name, error)
        raise LoadRefused(f"{name} is not loaded: {without_folders(str(error), ())}") from error
