"""supervise.py MARGIN_S CHILD [ARGUMENT ...] -conf FILE: the supervisor, of a child that a test chooses."""

import os
import sys
from pathlib import Path

from cmd import logs, supervisor
from internal.conf.load import load

margin_s, *child = sys.argv[1:]
settings = load(Path(child[-1]), os.environ)
logs.configure(settings.log.level, settings.log.format)
program = str(Path(__file__).with_name(child[0]))
sys.exit(supervisor.run(settings, [sys.executable, program, *child[1:]], float(margin_s)))
