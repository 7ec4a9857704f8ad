"""`cmd` is ours and the standard library's."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    """What a fresh Python says that runs `code` in the project root."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_standard_names_are_handed_on() -> None:
    ours = importlib.import_module("cmd")
    assert ours.__file__ == str(ROOT / "cmd" / "__init__.py")
    assert ours.PROMPT == "(Cmd) "
    assert ours.IDENTCHARS.startswith("abc")
    assert ours.Cmd.__module__ == "cmd"
    assert ours.Cmd(stdin=None).cmdqueue == []


@pytest.mark.parametrize("module", ["pdb", "cmd", "bdb", "code", "doctest"])
def test_a_standard_module_that_needs_cmd_can_be_imported_from_the_root(module: str) -> None:
    assert run(f"import {module}; print({module}.__name__)") == module


def test_a_debugger_works_from_the_root() -> None:
    typed = "io.StringIO('p 6 * 7\\nc\\n')"
    told = run(f"import io, pdb, sys; pdb.Pdb(stdin={typed}, stdout=sys.stdout).set_trace()")
    assert "42" in told


def test_our_programs_can_be_imported_beside_it() -> None:
    assert (
        run("import cmd.wire, pdb; print(pdb.Pdb.__mro__[2].__name__, cmd.wire.__name__)") == "Cmd cmd.wire"
    )


def test_everything_that_the_standard_module_exports_is_there() -> None:
    told = run(
        "import sys, os, importlib.util as u, cmd;"
        "spec = u.spec_from_file_location('standard', os.path.join(os.path.dirname(os.__file__), 'cmd.py'));"
        "std = u.module_from_spec(spec); spec.loader.exec_module(std);"
        "print([n for n in {*std.__all__, 'PROMPT', 'IDENTCHARS'} if not hasattr(cmd, n)])"
    )
    assert told == "[]"
