"""What renders Markdown for a server: a process of its own, which knows nothing of the server's secrets."""

import os
import sys
from pathlib import Path

from internal.server.markdown.process import Program
from internal.server.markdown.rendering import Rendering

ROOT = Path(__file__).parents[2]
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
"""Of the environment: what Python may need to start, and nothing that holds a key."""


def rendering() -> Rendering:
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    # Ahead of the standard library, which has a module `cmd` too.
    environment["PYTHONPATH"] = str(ROOT)
    return Rendering(Program([sys.executable, "-m", "cmd.renderer"], environment, ROOT))
