"""Who may import whom, by the source text and by what a help page really loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lingconv
from support import environment

PACKAGE = Path(lingconv.__file__).parent
HEAVY = ("torch", "numpy", "huggingface_hub", "jinja2", "msgspec", "rich", "tqdm", "lingconv._core")
# The only modules that may import a name; anything below `lingconv.` is left out.
ALONE = {
    "lingconv._core": {"api"},
    "rich": {"console"},
    "tqdm": {"progress"},
    "huggingface_hub": {"hub"},
    "jinja2": {"report"},
    "msgspec": {"report"},
    "click": {"cli"},
}
CLI_MAY_IMPORT = {
    "api",
    "cli",
    "config",
    "console",
    "errors",
    "expert_records",
    "experts",
    "foreign",
    "hub",
    "outputs",
    "probing",
    "progress",
    "records",
    "report",
    "runs",
    "signals",
    "units",
    "verify_records",
    "workers",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Full names that a tree imports; `from a import b` may mean the module `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def top(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("name", ALONE)
def test_only_one_module_imports(name: str) -> None:
    importers = {
        top(module)
        for module, tree in modules()
        if any(is_within(found, name) for found, _ in imports(tree))
    }
    assert importers <= ALONE[name]


def test_nothing_imports_the_command_line() -> None:
    importers = {
        top(module)
        for module, tree in modules()
        if any(is_within(found, "lingconv.cli") for found, _ in imports(tree))
    }
    assert importers <= {"cli", "__main__"}


def test_what_the_command_line_imports() -> None:
    for module, tree in modules():
        if top(module) != "cli":
            continue
        for found, _ in imports(tree):
            if is_within(found, "lingconv"):
                assert found.split(".")[1] in CLI_MAY_IMPORT, f"{module} imports {found}"


def test_torch_is_imported_inside_functions() -> None:
    for module, tree in modules():
        outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
        for statement in outside:
            if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
                continue
            names = [found for found, _ in imports(statement)]
            assert not any(is_within(name, "torch") for name in names), module


def test_only_the_console_prints() -> None:
    for module, tree in modules():
        if top(module) in ("console", "reference"):
            continue
        called = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert "print" not in called, module
        assert "sys.stdout.write" not in called, module


def test_modules_stay_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 420} == {}


def loaded_by(*arguments: str) -> set[str]:
    """Names of all modules that a command line leaves loaded."""
    script = (
        "import json, sys\n"
        "from lingconv.cli import main\n"
        f"main({list(arguments)!r})\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["quantize", "--help"],
        ["plan", "--help"],
        ["experts", "--help"],
        ["experts", "stats", "--help"],
        ["experts", "place", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by(*arguments) & set(HEAVY)


def test_help_of_the_group_loads_no_command() -> None:
    commands = {"lingconv.cli.quantize", "lingconv.cli.inspect", "lingconv.cli.options"}
    assert not loaded_by("--help") & commands


def test_the_public_names_exist() -> None:
    for name in lingconv.__all__:
        assert getattr(lingconv, name) is not None
    with pytest.raises(AttributeError):
        lingconv.nothing  # noqa: B018
