"""The programs of Sluice, and the standard library's `cmd`, whose name this package takes.

pdb imports that module, and pytest and torch import pdb. From the project root they find this package
instead, so it hands on the standard module's names.
"""

import os
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_spec = PathFinder.find_spec("cmd", [os.path.dirname(os.__file__)])
assert _spec, "this Python has no standard cmd module"
assert _spec.loader
_standard = module_from_spec(_spec)
_spec.loader.exec_module(_standard)

Cmd: type = _standard.Cmd
PROMPT: str = _standard.PROMPT
IDENTCHARS: str = _standard.IDENTCHARS

__all__ = ["IDENTCHARS", "PROMPT", "Cmd"]
