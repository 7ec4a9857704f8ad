"""Lets tests import what run.py is made of: `test` cannot be imported."""

import sys
from pathlib import Path

HERE = Path(__file__).parent

sys.path.insert(0, str(HERE / "parts"))
