"""Commands and responses shown in Markdown pages: reading them, running them, comparing them."""

import json
import re
import shlex
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = re.compile(r"(?ms)^```sh\n(.*?)\n```$(?:\n\n^```(json|text)\n(.*?)\n```$)?")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
EXACT = frozenset(("model", "code", "detail", "status"))
"""Fields that no host and no load changes."""


class Example(NamedTuple):
    """A block of commands, and what a page shows under it."""

    commands: str
    response: Any  # JSON; None: not shown
    output: str | None  # text; None: not shown


def examples(page: str) -> list[Example]:
    """The blocks of commands of a page, named by its path."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Example(
            commands,
            # Not strict: a page may break a long sentence into lines.
            json.loads(shown.replace(", ...]", "]"), strict=False) if language == "json" else None,
            shown if language == "text" else None,
        )
        for commands, language, shown in EXAMPLE.findall(text)
    ]


def split_commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a block, without its comments."""
    pending = ""
    for line in block.replace("\\\n", " ").splitlines():
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # the quotation goes on in the next line
            pending += "\n"
            continue
        pending = ""
        if words:
            yield words
    assert not pending, f"a quotation has no end: {pending}"


def run_requests(example: Example, port: int, folder: Path) -> str:
    """Run curl commands as pasted, only against another port; return what they printed.

    Args:
        example: Its files go to `folder`.
        port: The server's.
        folder: For the files that commands write.
    """
    commands = example.commands.replace("localhost:8000", f"127.0.0.1:{port}")
    commands = commands.replace("-o rows.npz", f"-o {folder}/rows.npz")
    commands = commands.replace("curl ", "curl -sS ")
    run = subprocess.run(
        ["bash", "-euc", commands], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return run.stdout


def assert_as_shown(printed: str, example: Example, exact: Collection[str] = EXACT) -> None:
    """The response is no error unless one is shown, and has the fields shown."""
    if example.response is None:
        assert '"code"' not in printed
    else:
        assert_alike(last_document(printed), example.response, exact)


def last_document(printed: str) -> Any:
    """The last of several JSON documents that stand one behind the other."""
    decoder, document, end = json.JSONDecoder(), None, 0
    while end < len(printed.rstrip()):
        document, end = decoder.raw_decode(printed, end)
    return document


def assert_alike(given: Any, shown: Any, exact: Collection[str], field: str = "") -> None:
    """The same fields; the same values in `exact` ones, elsewhere values of the same kind."""
    if isinstance(shown, dict):
        assert list(given) == list(shown), field
        for name in shown:
            assert_alike(given[name], shown[name], exact, name)
    elif isinstance(shown, list) and isinstance(given, list):
        for one, other in zip(given, shown, strict=False):
            assert_alike(one, other, exact, field)
    elif field in exact:
        assert given == shown
    elif given is not None and shown is not None:
        assert isinstance(given, str) == isinstance(shown, str), field


def without_numbers(text: str) -> str:
    """The words of a text; a run of numbers is one N, so that counts of exits do not matter."""
    words = NUMBER.sub("N", " ".join(text.split()))
    return re.sub(r"\bN(?: N)+\b", "N", words)
