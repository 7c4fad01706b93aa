"""The files around the code agree with it and with each other."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from server.app import create_app
from server.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
METADATA = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('made')"


class Rule(NamedTuple):
    help: str  # the comment above it, without its "## "
    recipe: list[str]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


@pytest.fixture(scope="module")
def copied_by_docker() -> list[str]:
    """What the build stage of the Dockerfile copies from the checkout."""
    copies = re.findall(r"^COPY (?!--from)(.+)$", read("Dockerfile"), re.MULTILINE)
    return [source for copy in copies for source in copy.split()[:-1]]


@pytest.fixture(scope="module")
def metadata(copied_by_docker: list[str], tmp_path_factory: pytest.TempPathFactory) -> Message:
    """The distribution's metadata, built as in the container: from what the Dockerfile copies."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "made").mkdir()
    for source in copied_by_docker:
        (folder / source).symlink_to(ROOT / source)
    subprocess.run([sys.executable, "-c", METADATA], cwd=folder, check=True)
    return Parser().parsestr(next(folder.glob("made/*.dist-info/METADATA")).read_text())


@pytest.fixture(scope="module")
def rules() -> dict[str, Rule]:
    """The rules of the Makefile by target."""
    found: dict[str, Rule] = {}
    text, rule = "", None
    for line in read("Makefile").splitlines():
        if line.startswith("\t"):
            assert rule is not None, f"a recipe without a rule: {line}"
            rule.recipe.append(line.strip())
        elif line.startswith("## "):
            text = line.removeprefix("## ")
        elif match := re.match(r"([^\s.#=:][^\s=:]*|\.venv[^\s=:]*)\s*:(?!=)", line):
            rule = found[match[1]] = Rule(text, [])
            text = ""
    return found


@pytest.fixture(scope="module")
def phony() -> list[str]:
    return [
        target
        for names in re.findall(r"^\.PHONY:(.*)$", read("Makefile"), re.MULTILINE)
        for target in names.split()
    ]


def make(*arguments: str) -> str:
    # `make test` runs this file, and a make inside a make prints more and takes over variables.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.check_output(["make", *arguments], cwd=ROOT, env=environment, text=True)


def entry_point(project: dict[str, Any]) -> Callable[[list[str]], int]:
    module, _, function = project["project"]["scripts"]["eenet"].partition(":")
    return getattr(importlib.import_module(module), function)


def test_version_command_app_and_distribution_agree(
    project: dict[str, Any], metadata: Message, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        entry_point(project)(["--version"])
    version = metadata["Version"]
    assert capsys.readouterr().out == f"eenet {version}\n"
    assert create_app(Settings()).version == version


def test_version_is_written_in_one_place(project: dict[str, Any], metadata: Message) -> None:
    packages = project["tool"]["mypy"]["packages"]
    files = [path for package in packages for path in ROOT.glob(f"{package}/**/*.py")]
    written = re.compile(rf"""["']{re.escape(metadata["Version"])}["']""")
    found = [path for path in (ROOT / "pyproject.toml", *files) if written.search(path.read_text())]
    assert found == [ROOT / "server/__init__.py"]


def test_version_has_a_section_in_the_changelog(metadata: Message) -> None:
    sections = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert sections[:2] == ["Unreleased", metadata["Version"]]


def test_distribution_carries_licence_and_notice(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]


def test_licence_is_the_whole_apache_text() -> None:
    text = read("LICENSE")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    for number in range(1, 10):
        assert f"\n   {number}. " in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_notice_names_every_shipped_network_and_every_file_of_data() -> None:
    notice = read("NOTICE")
    made_by_others = [
        *ROOT.glob("models/zoo/*"),
        *ROOT.glob("tests/data/*"),
        *ROOT.glob("docs/images/*.jpg"),
    ]
    names = {path.relative_to(ROOT).as_posix() for path in made_by_others}
    assert names
    assert {name for name in names if name not in notice} == set()


def test_docker_sends_what_the_dockerfile_copies(copied_by_docker: list[str]) -> None:
    let_through = re.findall(r"^!(.+)$", read(".dockerignore"), re.MULTILINE)
    assert set(copied_by_docker) == set(let_through)


def test_every_target_is_phony_or_a_file(rules: dict[str, Rule], phony: list[str]) -> None:
    assert sorted(phony) == sorted(target for target in rules if not target.startswith(".venv/"))


def test_help_has_a_line_for_every_target(rules: dict[str, Rule], phony: list[str]) -> None:
    lines = [line.split(maxsplit=2) for line in make().splitlines()]
    assert [words[:2] for words in lines] == [
        ["make", target] for target in rules if target in phony
    ]
    assert [words[2] for words in lines] == [rules[words[1]].help for words in lines]


def test_make_test_passes_arguments_to_pytest() -> None:
    last = make("--dry-run", "test", "ARGS=tests/server -k 'cancel or drain'").splitlines()[-1]
    assert shlex.split(last)[-3:] == ["tests/server", "-k", "cancel or drain"]


def test_make_test_runs_in_parallel_unless_told_which_tests() -> None:
    whole, some = (
        make("--dry-run", "test", *arguments).splitlines()[-1]
        for arguments in ([], ["ARGS=tests/server"])
    )
    assert "--numprocesses auto" in whole
    assert "--numprocesses" not in some


def test_make_test_leaves_the_slow_tests_to_another_target_unless_told_which_tests() -> None:
    whole, slow, some = (
        shlex.split(make("--dry-run", *arguments).splitlines()[-1])
        for arguments in (["test"], ["test-slow"], ["test", "ARGS=tests/server"])
    )
    chosen = whole.index("-m", 2) + 1  # the first -m is of `python -m pytest`
    assert (whole[chosen], slow[chosen]) == ("not slow", "slow")
    assert whole[chosen + 1 :] == slow[chosen + 1 :]
    assert "slow" not in " ".join(some)


def test_ci_runs_the_slow_tests_after_the_others() -> None:
    steps = read(".ci/run").splitlines()
    assert steps.index("make test") + 1 == steps.index("make test-slow")


def test_pre_commit_calls_the_linters_of_make_lint(rules: dict[str, Rule]) -> None:
    repositories = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == rules["lint"].recipe
    for hook in hooks:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
