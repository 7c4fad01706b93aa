"""The README's commands exist as they are written; the cheap ones run.

The requests run in tests/e2e/test_readme_examples.py, and the commands for an own model in
tests/server/cli/test_training_model.py, with tiny data. Some commands only have their options
checked: `fit --from-live`, `evaluate` and `certify` take minutes or need files that are not
here, `serve` does not end, and docker may be missing.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from server.cli.main import main
from server.settings import ENV_PREFIX, Settings
from tests.documents import (
    EXACT,
    ROOT,
    assert_alike,
    examples,
    last_document,
    split_commands,
    without_numbers,
)

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = examples("README.md")
INLINE = re.compile(r"`((?:make|eenet|\.venv/bin/\w+|RUNTIME=\w+ make) [^`]+)`")
COMMANDS = [words for each in EXAMPLES for words in split_commands(each.commands)] + [
    shlex.split(" ".join(span.split())) for span in INLINE.findall(README)
]
RUN_HERE = {"predict": "README.md", "info": "docs/training.md"}  # and the page that shows it


def commands_of(*programs: str) -> list[list[str]]:
    """The arguments of each command of a program, without variables set before it."""
    plain = [[word for word in words if not word.startswith("RUNTIME=")] for words in COMMANDS]
    return [words[1:] for words in plain if words[0] in programs]


EENET = commands_of("eenet", ".venv/bin/eenet")


def test_every_command_is_checked_somewhere() -> None:
    checked = commands_of("make", "curl", "docker", ".venv/bin/python") + EENET
    assert len(checked) == len(COMMANDS)
    assert {words[0] for words in EENET} > {"serve", "attach", "build", "evaluate", *RUN_HERE}


def test_first_screen_has_claims_with_commands_a_request_and_a_picture() -> None:
    first = README.partition("\n## ")[0]
    claims = re.findall(r"(?ms)^- \*\*.*?(?=^- |\n\n)", first)
    assert len(claims) == 4
    for claim in claims:
        assert INLINE.search(claim), f"a claim names no command: {claim}"
    requests = [each for each in EXAMPLES if each.commands in first and each.response is not None]
    assert len(requests) == 1
    (image,) = re.findall(r"!\[[^\]]+\]\((.+?)\)", first)
    assert (ROOT / image).is_file()


def test_targets_of_make_exist() -> None:
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    named = [target for words in commands_of("make") for target in words]
    assert named and set(named) <= set(targets)


@pytest.mark.parametrize("words", EENET, ids=" ".join)
def test_eenet_knows_the_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words
    with pytest.raises(SystemExit) as ended:
        main([command, *rest, "--help"])  # reads the values of all options before it helps
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in rest:
        assert not word.startswith("--") or re.search(rf"{word}\b", text), word


@pytest.mark.parametrize("name", RUN_HERE)
def test_what_runs_without_a_server_prints_what_is_shown(name: str) -> None:
    shown = examples(RUN_HERE[name])
    (example,) = (each for each in shown if f"/eenet {name} " in each.commands)
    ((_, *arguments),) = split_commands(example.commands)
    run = subprocess.run(
        [sys.executable, "-m", "server.cli.main", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    if example.output is None:
        exact = EXACT | {"file", "label", "class_id", "exit", "num_exits"}
        assert_alike(last_document(run.stdout), example.response, exact)
    else:
        assert without_numbers(run.stdout) == without_numbers(example.output)


def test_docker_commands_fit_the_dockerfile() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, value in re.findall(r"--build-arg (\w+)=(\w+)", README):
        assert re.search(rf"(?m)^ARG {name}\b", dockerfile)
        assert value in project["optional-dependencies"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flag in ("-p", "-e", "-v", "--gpus"):
        parser.add_argument(flag)
    parser.add_argument("image")
    parser.add_argument("flags", nargs=argparse.REMAINDER)
    (build, *_), *runs = commands_of("docker")
    assert build == "build"
    (built,) = (words[words.index("-t") + 1] for words in commands_of("docker") if "-t" in words)
    for verb, *words in runs:
        options = parser.parse_args(words)
        assert (verb, options.image) == ("run", built)
        assert re.search(rf"(?m)^EXPOSE {options.p.partition(':')[2]}$", dockerfile)
        if options.e is not None:
            name, _, value = options.e.partition("=")
            assert name.startswith(ENV_PREFIX)
            Settings.model_validate({name.removeprefix(ENV_PREFIX).lower(): value})
        flags = [word for word in options.flags if word.startswith("--")]
        assert {flag[2:].replace("-", "_") for flag in flags} <= set(Settings.model_fields)
        if flags:  # the folder that a flag names is the one that is mounted
            assert options.v.split(":")[1] in options.flags
    (entry,) = re.findall(r"(?m)^ENTRYPOINT (.+)$", dockerfile)
    assert json.loads(entry) == ["eenet", "serve"]


def test_table_of_flags_has_their_defaults() -> None:
    section = README.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| (`--.+?) \| (.+?) \|", section)
    assert len(rows) >= 5
    for flags, defaults in rows:
        names = [name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)`", flags)]
        assert set(names) <= set(Settings.model_fields)
        given = defaults.replace("`", "").split(", ")
        for name, default in zip(names, given, strict=len(given) > 1):
            actual = Settings.model_fields[name].default
            assert str(actual) == default or name == "bundle" or actual is None


def test_tree_shows_folders_that_exist_and_leaves_out_no_package() -> None:
    (tree,) = (
        block
        for block in re.findall(r"(?ms)^```text\n(.*?)^```$", README)
        if block.startswith("models/")
    )
    shown, parent = set(), ""
    for indent, name in re.findall(r"(?m)^( *)([\w-]+/)", tree):
        parent = parent if indent else name
        shown.add(parent + name if indent else name)
    assert [folder for folder in shown if not (ROOT / folder).is_dir()] == []
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for top in ("models", "profiling", "scheduler", "server")
        for path in (ROOT / top).glob("**/__init__.py")
    }
    assert packages <= shown
