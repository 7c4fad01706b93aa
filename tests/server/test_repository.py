import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from models.bundle import Bundle
from profiling.calibration import Predictions, Recorded
from server.bundle_folders import BundleSource, VersionPolicy
from server.choice import ModelTable
from server.errors import LoadRefused, UnknownModel
from server.repository import Change, Repository
from server.settings import Settings
from tests.server.conftest import write_bundle

GIB = 1 << 30


@dataclass(eq=False)
class Model:
    """A model that is served."""

    name: str
    version: str
    sha256: str
    predecessor: Any = None


class Host:
    """Serves models in no time; `on_step` is called wherever other requests could come between.

    Attributes:
        running: Models that could answer.
        fault: What the next load fails with.
    """

    engines = 2

    def __init__(self, models: ModelTable[Any]) -> None:
        self.models, self.running = models, list[Model]()
        self.on_step: Callable[[], None] = lambda: None
        self.fault: str | None = None

    async def load(self, source: BundleSource, bundle: Bundle, predecessor: Any) -> None:
        await self._step()
        if self.fault is not None:
            raise ValueError(self.fault)
        assert bundle.manifest.version == source.version
        model = Model(source.name, source.version, source.sha256, predecessor)
        self.running.append(model)
        await self._step()
        self.models.add(model)
        await self._step()

    async def unload(self, model: Any) -> None:
        await self._step()
        self.models.remove(model)
        await self._step()
        self.running.remove(model)
        await self._step()

    async def _step(self) -> None:
        await asyncio.sleep(0)
        self.on_step()


class Stage:
    """A repository, its folder and its host."""

    def __init__(self, root: Path, template: Path, **settings: Any) -> None:
        self.root, self.template = root, template
        self.models: ModelTable[Any] = ModelTable()
        self.host = Host(self.models)
        self.free: int | None = GIB
        self.repository = Repository(
            Settings(repository=root, **settings),
            self.models,
            self.host,
            available=lambda: self.free,
        )
        self._contents = 0

    def put(self, name: str, version: str) -> None:
        """Put a bundle there, or change the one that is there."""
        folder = self.root / name / version
        if not folder.exists():
            shutil.copytree(self.template, folder)
        self._contents += 1
        manifest = json.loads((self.template / "bundle.json").read_text())
        manifest |= {"name": name, "training": {"run": self._contents}}
        (folder / "bundle.json").write_text(json.dumps(manifest))

    def begin(self) -> None:
        """Serve what a server starts with."""

        async def begin() -> None:
            for source, _ in self.repository.begin():
                self.models.add(Model(source.name, source.version, source.sha256))
            self.host.running = self.models.values()

        asyncio.run(begin())

    def load(self, name: str, policy: VersionPolicy | None = None) -> Change:
        return asyncio.run(self.repository.load(name, policy))

    def unload(self, name: str) -> Change:
        return asyncio.run(self.repository.unload(name))

    def states(self) -> dict[str, str]:
        return {f"{each.name}@{each.version}": each.state for each in self.repository.index()}

    def reason(self, name: str, version: str) -> str:
        entries = self.repository.index()
        (found,) = (each for each in entries if (each.name, each.version) == (name, version))
        return found.reason


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_template(tmp_path_factory.mktemp("template"))


def write_template(folder: Path) -> Path:
    rows = Predictions(np.zeros((3, 4, 4), np.float16), np.zeros(4, np.int64))
    return write_bundle(folder / "bundle", Recorded(rows, None, rows))


@pytest.fixture
def stage(tmp_path: Path, template: Path) -> Stage:
    stage = Stage(tmp_path, template)
    stage.put("cat", "1")
    stage.put("dog", "1")
    stage.begin()
    return stage


def test_a_start_serves_the_latest_version_of_each_model(stage: Stage) -> None:
    assert stage.states() == {"cat@1": "READY", "dog@1": "READY"}


def test_a_load_swaps_the_version_and_keeps_its_budget(stage: Stage) -> None:
    (before,) = stage.models.versions("cat")
    stage.put("cat", "2")
    assert stage.states()["cat@2"] == "UNAVAILABLE"
    assert stage.load("cat") == Change("cat", ["2"], ["1"])
    assert stage.models.find("cat").predecessor is before
    assert stage.states() == {"cat@1": "UNAVAILABLE", "cat@2": "READY", "dog@1": "READY"}


def test_a_load_without_news_changes_nothing(stage: Stage) -> None:
    before = stage.models.values()
    assert stage.load("cat") == Change("cat", [], [])
    assert stage.models.values() == before


def test_a_changed_bundle_takes_the_place_of_the_one_before(stage: Stage) -> None:
    before = stage.models.find("cat")
    stage.put("cat", "1")
    assert stage.load("cat") == Change("cat", ["1"], [])
    assert stage.models.find("cat") is not before
    assert before not in stage.host.running


def test_a_version_is_loaded_beside_the_others(stage: Stage) -> None:
    stage.put("cat", "2")
    stage.put("cat", "3")
    assert stage.load("cat@2") == Change("cat", ["2"], [])
    assert stage.load("cat", VersionPolicy(None, ("1", "3"))) == Change("cat", ["3"], ["2"])
    assert stage.unload("cat@1") == Change("cat", [], ["1"])
    assert [model.version for model in stage.models.versions("cat")] == ["3"]


def test_a_model_is_unloaded_and_loaded_again(stage: Stage) -> None:
    assert stage.unload("cat") == Change("cat", [], ["1"])
    assert stage.states()["cat@1"] == "UNAVAILABLE"
    with pytest.raises(UnknownModel, match="no model 'cat' is loaded; name one of dog"):
        stage.unload("cat")
    assert stage.load("cat") == Change("cat", ["1"], [])


def test_the_last_model_stays(stage: Stage) -> None:
    stage.unload("cat")
    with pytest.raises(LoadRefused, match="dog is all that this server has loaded"):
        stage.unload("dog")
    assert stage.states()["dog@1"] == "READY"


@pytest.mark.parametrize("name", ["cow", "../cat", "", "cat/1"])
def test_what_is_not_there_is_not_loaded(stage: Stage, name: str) -> None:
    with pytest.raises(UnknownModel, match=r"to load; --repository and --bundle .* have cat, dog"):
        stage.load(name)


def test_a_version_that_is_not_there_is_refused(stage: Stage) -> None:
    with pytest.raises(LoadRefused, match="there is no version '7'; there are 1"):
        stage.load("cat@7")


def test_a_damaged_bundle_is_refused_and_the_one_before_stays(stage: Stage) -> None:
    stage.put("cat", "2")
    next((stage.root / "cat/2").rglob("*.onnx")).write_bytes(b"other")
    with pytest.raises(LoadRefused, match=r"cat is not loaded: .*onnx") as refused:
        stage.load("cat")
    assert str(stage.root) not in refused.value.detail
    assert stage.states() == {"cat@1": "READY", "cat@2": "UNAVAILABLE", "dog@1": "READY"}


def test_a_host_that_cannot_load_it_leaves_the_version_before(stage: Stage) -> None:
    stage.put("cat", "2")
    stage.host.fault = "the graph /models/secret/0.onnx is damaged"
    with pytest.raises(LoadRefused, match=r"cat version 2 is not loaded: the graph 0\.onnx"):
        stage.load("cat")
    assert stage.models.find("cat").version == "1"
    assert "the graph 0.onnx is damaged" in stage.reason("cat", "2")
    stage.host.fault = None
    stage.load("cat")
    assert stage.reason("cat", "2") == ""


def test_versions_that_are_loaded_together_come_together_or_not_at_all(stage: Stage) -> None:
    stage.put("cat", "2")
    stage.put("cat", "3")
    stage.host.on_step = lambda: setattr(
        stage.host, "fault", "it is full" if len(stage.models.versions("cat")) > 1 else None
    )
    with pytest.raises(LoadRefused, match="version 3 is not loaded: it is full"):
        stage.load("cat", VersionPolicy(None))
    assert [model.version for model in stage.models.versions("cat")] == ["1"]
    assert stage.host.running == stage.models.values()


def test_a_model_without_room_is_refused(stage: Stage) -> None:
    stage.put("cat", "2")
    stage.free = 10
    with pytest.raises(LoadRefused, match="it takes about 0 MiB, and 0 MiB are free; unload"):
        stage.load("cat")
    stage.free = None
    assert stage.load("cat").loaded == ["2"]


def test_states_of_what_moves_are_told(stage: Stage) -> None:
    seen = set[tuple[str, str]]()
    stage.host.on_step = lambda: seen.update(stage.states().items())
    stage.put("cat", "2")
    stage.load("cat")
    assert ("cat@2", "LOADING") in seen
    assert ("cat@1", "UNLOADING") in seen


def test_a_change_goes_on_when_its_client_leaves(stage: Stage) -> None:
    stage.put("cat", "2")

    async def leave() -> None:
        loads = asyncio.Event()
        stage.host.on_step = loads.set
        task = asyncio.ensure_future(stage.repository.load("cat"))
        await loads.wait()
        task.cancel()
        while stage.states()["cat@2"] != "READY" or stage.states()["cat@1"] != "UNAVAILABLE":
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(leave(), 10))


def test_changes_are_made_one_after_another(stage: Stage) -> None:
    stage.put("cat", "2")

    async def both() -> list[Change]:
        return await asyncio.gather(stage.repository.load("cat"), stage.repository.load("cat"))

    assert asyncio.run(both()) == [Change("cat", ["2"], ["1"]), Change("cat", [], [])]


NAMES, VERSIONS = st.sampled_from(["cat", "dog"]), st.sampled_from(["1", "2", "3"])


class Traffic(RuleBasedStateMachine):
    """Requests come between all steps of loads and unloads; none is lost or answered wrongly."""

    @initialize()
    def start(self) -> None:
        self._folder = TemporaryDirectory()
        root = Path(self._folder.name)
        (root / "repository").mkdir()
        self.stage = Stage(root / "repository", write_template(root))
        self.stage.put("cat", "1")
        self.stage.put("fox", "1")  # is never unloaded
        self.stage.begin()
        self.stage.host.on_step = self.send
        self.kept = {"fox"}

    def teardown(self) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def send(self) -> None:
        """A request to each model, and to each version that is known."""
        stage = self.stage
        for name in self.kept:
            assert stage.models.find(name) in stage.host.running
        for name, version in ((n, v) for n in ("cat", "dog") for v in "123"):
            try:
                model = stage.models.find(name, version)
            except UnknownModel:
                continue
            assert model in stage.host.running
            assert (model.name, model.version) == (name, version)

    @rule(name=NAMES, version=VERSIONS)
    def put(self, name: str, version: str) -> None:
        self.stage.put(name, version)

    @rule(name=NAMES, version=VERSIONS)
    def damage(self, name: str, version: str) -> None:
        path = self.stage.root / name / version / "bundle.json"
        if path.exists():
            path.write_text("{")

    @rule(
        name=NAMES,
        policy=st.one_of(
            st.just(VersionPolicy()),
            st.just(VersionPolicy(None)),
            VERSIONS.map(lambda version: VersionPolicy(None, (version,))),
        ),
        fails=st.booleans(),
    )
    def load(self, name: str, policy: VersionPolicy, fails: bool) -> None:
        stage = self.stage
        stage.host.fault = "it does not fit" if fails else None
        before = stage.models.versions(name)
        self.kept = {"fox", *(model.name for model in stage.models)}
        try:
            change = stage.load(name, policy)
        except (LoadRefused, UnknownModel):
            assert stage.models.versions(name) == before
        else:
            assert {*change.loaded} <= {model.version for model in stage.models.versions(name)}
            assert stage.models.versions(name)

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.kept = {"fox", *(model.name for model in self.stage.models)} - {name}
        try:
            self.stage.unload(name)
        except UnknownModel:
            return
        assert not self.stage.models.versions(name)

    @invariant()
    def everything_that_runs_is_served(self) -> None:
        if hasattr(self, "stage"):
            assert set(self.stage.host.running) == set(self.stage.models.values())


class TestTraffic(Traffic.TestCase):  # type: ignore[misc]
    settings = hypothesis_settings(max_examples=15, stateful_step_count=12, deadline=None)


def test_settings_of_a_repository(tmp_path: Path) -> None:
    assert Settings(repository=tmp_path).bundle == ()
    assert len(Settings().bundle) == 2
    with pytest.raises(ValueError, match="there is no bundle to serve; give --bundle, or"):
        Settings(bundle=())
    with pytest.raises(ValueError, match=r"--repository .*nosuch is not a folder; make it"):
        Settings(repository=tmp_path / "nosuch")
    for policy in ("newest", "latest:0", "1"):
        with pytest.raises(ValueError, match="version_policy"):
            Settings(version_policy=policy)
