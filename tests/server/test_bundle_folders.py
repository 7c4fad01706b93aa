import shutil
from pathlib import Path

import pytest

from models.bundle import BundleError, load_bundle, rewrite_manifest
from server.bundle_folders import (
    RepositoryFolder,
    VersionPolicy,
    bundles_at_start,
    choose_folders,
    find_bundle,
    find_bundles,
    name_repeats,
    open_source,
    policy_of_setting,
    policy_of_triton,
)
from server.settings import Settings

VERSIONS = ["1", "2", "9", "10"]


def stored(root: Path, *places: str) -> RepositoryFolder:
    """A repository with a manifest in each of these folders."""
    for place in places:
        (root / place).mkdir(parents=True)
        (root / place / "bundle.json").write_text("{}")
    return RepositoryFolder(root)


def test_versions_are_listed_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    repository = stored(tmp_path, "cat/10", "cat/9", "dog/1")
    assert repository.names() == ["cat", "dog"]
    assert list(repository.versions("cat")) == ["9", "10"]
    assert repository.versions("cat")["9"] == tmp_path / "cat" / "9"


def test_what_is_no_version_is_passed_over(tmp_path: Path) -> None:
    repository = stored(tmp_path, "cat/1", "cat/.tmp", ".git/1")
    (tmp_path / "cat" / "2").mkdir()  # a copy that has not got its manifest yet
    (tmp_path / "notes").mkdir()
    (tmp_path / "README").write_text("")
    assert repository.names() == ["cat"]
    assert list(repository.versions("cat")) == ["1"]


@pytest.mark.parametrize("name", ["..", ".", "", "/", "../cat", "cat/..", "x", "\0"])
def test_no_name_leads_out_of_the_repository(tmp_path: Path, name: str) -> None:
    stored(tmp_path, "cat/1")
    assert RepositoryFolder(tmp_path / "cat").versions(name) == {}


def test_without_a_folder_there_is_nothing() -> None:
    assert RepositoryFolder(None).names() == []
    assert RepositoryFolder(Path("/nosuch")).names() == []


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (policy_of_setting("latest"), ["10"]),
        (policy_of_setting("latest:2"), ["9", "10"]),
        (policy_of_setting("latest:9"), VERSIONS),
        (policy_of_setting("all"), VERSIONS),
        (policy_of_triton({"latest": {"num_versions": 2}}), ["9", "10"]),
        (policy_of_triton({"all": {}}), VERSIONS),
        (policy_of_triton({"specific": {"versions": [10, 1]}}), ["1", "10"]),
        (policy_of_triton({"specific": {"versions": ["9"]}}), ["9"]),
    ],
)
def test_a_policy_chooses_versions(policy: VersionPolicy, chosen: list[str]) -> None:
    assert policy.choose(VERSIONS) == chosen


def test_a_version_that_is_named_must_exist() -> None:
    with pytest.raises(ValueError, match="no version '7'; there are 1, 2, 9, 10"):
        VersionPolicy(None, ("7",)).choose(VERSIONS)


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        {},
        {"latest": {}},
        {"latest": {"num_versions": 0}},
        {"latest": {"num_versions": "1"}},
        {"all": {}, "latest": {"num_versions": 1}},
        {"specific": {"versions": []}},
    ],
)
def test_what_is_no_policy_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="version_policy is none of"):
        policy_of_triton(given)


def test_bundles_of_the_command_line_are_served_beside_the_latest_stored_one() -> None:
    pinned, folders = {"1": Path("a")}, {"1": Path("r/1"), "2": Path("r/2"), "3": Path("r/3")}
    assert choose_folders(pinned, folders, VersionPolicy()) == {"1": Path("r/1"), "3": Path("r/3")}
    named = VersionPolicy(None, ("2",))
    assert choose_folders(pinned, folders, named) == {"2": Path("r/2")}
    assert choose_folders({}, {}, named) == {}


def test_a_bundle_is_served_as_the_version_of_its_folder(shipped_bundle: Path) -> None:
    source, bundle = find_bundle(shipped_bundle, "cifar10-resnet56", "7")
    assert source.version == bundle.manifest.version == "7"
    assert open_source(source) == bundle
    assert find_bundle(shipped_bundle).source.version == "1"


def test_a_bundle_of_another_name_is_refused(shipped_bundle: Path) -> None:
    with pytest.raises(BundleError, match="a bundle of the model 'cifar10-resnet56'; move it"):
        find_bundle(shipped_bundle, "cat", "1")


def test_a_network_that_has_changed_since_is_refused(shipped_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(shipped_bundle, folder)
    source = find_bundle(folder).source
    rewrite_manifest(load_bundle(folder), training={"fitted": "again"})
    assert open_source(source).manifest.training == {"fitted": "again"}
    assert find_bundle(folder).source != source, "a load takes it for a new bundle"
    rewrite_manifest(load_bundle(folder), classes=tuple("abcdefghij"))
    with pytest.raises(BundleError, match="holds another network than when it was read"):
        open_source(source)


def test_two_bundles_of_one_name_and_version_are_refused(shipped_bundle: Path) -> None:
    with pytest.raises(ValueError, match="two bundles are named 'cifar10-resnet56'"):
        find_bundles([shipped_bundle, shipped_bundle])


def test_names_that_repeat_are_found(shipped_bundle: Path, shipped_text_bundle: Path) -> None:
    assert not name_repeats([shipped_bundle, shipped_text_bundle, Path("/nosuch")])
    assert name_repeats([shipped_bundle, shipped_text_bundle, shipped_bundle])


def test_a_start_serves_bundles_and_the_repository(
    shipped_bundle: Path, shipped_text_bundle: Path, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        place = tmp_path / "ag-news-minilm" / version
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(shipped_text_bundle)
    settings = Settings(bundle=(shipped_bundle,), repository=tmp_path)
    found = [(each.name, each.version) for each, _ in bundles_at_start(settings)]
    assert found == [("cifar10-resnet56", "1"), ("ag-news-minilm", "2")]
    settings = Settings(repository=tmp_path, version_policy="all")
    found = [(each.name, each.version) for each, _ in bundles_at_start(settings)]
    assert found == [("ag-news-minilm", "1"), ("ag-news-minilm", "2")]
