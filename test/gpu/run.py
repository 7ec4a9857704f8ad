"""Everything of Sluice that only a GPU can show, by one command: checks, figures, and one short table.

    python test/gpu/run.py [--model DIR] [--quantised DIR] [--budget 540] [--out FILE] [--parts NAME,…]

Exit status: 0 when every check passed, 1 when one failed or a part broke, 2 for a wrong command line. How to
bring all that is needed to a machine without a network stands in README.md.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main() -> None:
    """Become the program that does it, with the project's root ahead of the standard library, which has a
    module `cmd` too."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = str(HERE / "parts" / "course.py")
    os.execve(sys.executable, [sys.executable, program, *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
