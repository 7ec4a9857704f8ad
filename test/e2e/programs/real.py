"""real.py -conf FILE -child NUMBER DESCRIPTOR FOLDER: a server process, with a queue of its own."""

import sys
from collections.abc import Mapping
from pathlib import Path

from cmd import server
from internal.conf.load import load
from internal.conf.settings import Queue, Settings


def load_with_memory(path: Path, environ: Mapping[str, str]) -> Settings:
    return load(path, environ).model_copy(update={"queue": Queue()})


vars(server)["load"] = load_with_memory
sys.exit(server.main())
