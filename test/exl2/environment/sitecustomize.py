"""Python imports this by itself when it starts and this folder is on PYTHONPATH."""

import exllamav2_on_cpu

exllamav2_on_cpu.install()
