"""The documentation names things that exist, and keeps its form."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINE = 100
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_PATH = re.compile(
    r"(?<![\w/.-])(?:server|models|scheduler|profiling|benchmarks|deploy)/[\w/]+\.\w+"
)
NEW_FILE = re.compile(r"(?m)^```python\n# (\S+\.py)$")
MODULE = re.compile(r"python -m (benchmarks[\w.]*)")
PACKAGES = ("models", "profiling", "scheduler", "server")
DEFINED_IN = re.compile(rf"`(\w+)(?:\.(\w+))?`\s+\(((?:{'|'.join(PACKAGES)})/[\w/]+\.py)\)")
FAILURES = ROOT / "docs" / "operations.md"
# What differs from one log line to the next: numbers, names of processes, reasons of refusals.
VARIABLE = re.compile(
    r"[\d.]+ ?|[():\[\]]|engine |front-end |SIGKILL|, start|refused, \w+|the zygote | after "
)
UVICORN_SAYS = "Cancel %s running task(s), timeout graceful shutdown exceeded"
METHOD = re.compile(r"`([A-Z][a-z]\w+)\.(\w+)`")


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    written = set(NEW_FILE.findall(text))  # files that the reader is told to write
    named = set(CODE_PATH.findall(text)) - written
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_benchmarks_that_are_named_exist(page: Path) -> None:
    names = set(MODULE.findall(page.read_text()))
    assert [name for name in names if importlib.util.find_spec(name) is None] == []


def test_names_are_defined_in_the_file_that_is_named(page: Path) -> None:
    for name, member, file in DEFINED_IN.findall(page.read_text()):
        names = names_in(ROOT / file)
        assert name in names, f"{name} is not defined in {file}"
        assert not member or f"{name}.{member}" in names, f"{name}.{member} is not in {file}"


def test_methods_that_are_named_exist(page: Path) -> None:
    named = {f"{name}.{member}" for name, member in METHOD.findall(page.read_text())}
    if named:
        files = [path for package in PACKAGES for path in (ROOT / package).glob("**/*.py")]
        assert named - {name for path in files for name in names_in(path)} == set()


def test_lines_outside_of_tables_are_short(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > LINE and not line.startswith("|")] == []


def test_log_lines_that_are_quoted_stand_in_the_code() -> None:
    said = [text for package in PACKAGES for path in (ROOT / package).rglob("*.py")
            for text in texts_in(path)]  # fmt: skip
    rows = re.findall(r"(?m)^\| .+ \| (.+) \| .+ \| .+ \|$", FAILURES.read_text())
    lines = [line for row in rows for line in re.findall(r"`([^`-][^`]+ [^`]+)`", row)]
    assert len(lines) > 20
    for line in lines:
        words = max(VARIABLE.split(line), key=len).strip()
        assert any(words in text for text in [*said, UVICORN_SAYS]), line


def test_a_missing_anchor_would_be_found(tmp_path: Path) -> None:
    text = tmp_path / "page.md"
    text.write_text("# GET and PUT /budget\n\n```\n# a comment\n```\n## `stopping`\n")
    assert anchors_of(text) == {"get-and-put-budget", "stopping"}


def names_in(path: Path) -> set[str]:
    """The functions and classes of a module, and each class's methods and fields as CLASS.NAME."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    names.add(f"{node.name}.{part.name}")
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    names.add(f"{node.name}.{part.target.id}")
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return names


def texts_in(path: Path) -> list[str]:
    """The texts of a module, and the constant parts of those that are put together."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return [
        node.value for node in nodes if isinstance(node, ast.Constant) and type(node.value) is str
    ]


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_configuration_of_nginx_is_the_one_that_is_tested() -> None:
    (shown,) = re.findall(r"(?ms)^```nginx\n(.*?)^```$", FAILURES.read_text())
    assert shown in (ROOT / "deploy" / "nginx.conf").read_text()
