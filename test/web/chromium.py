"""Which browser there is, and how it is started. Knows nothing of the page."""

import os
import shutil

from playwright.async_api import Browser, Playwright

# The first one is Chromium without windows: a page costs it a third less of a processor.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
MISSING = (
    "no Chromium: run as root `apt-get install chromium-headless-shell`, or name one in TEST_CHROMIUM; "
    f"on the PATH it would be called {', '.join(NAMES)}"
)
OPTIONS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever a page asks for elsewhere: nothing leaves this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def find_chromium() -> str | None:
    """The program. Raises FileNotFoundError where TEST_CHROMIUM names none."""
    if named := os.environ.get("TEST_CHROMIUM"):
        if (found := shutil.which(named)) is None:
            raise FileNotFoundError(f"TEST_CHROMIUM={named} is no program")
        return found
    return next((found for name in NAMES if (found := shutil.which(name))), None)


async def launch(playwright: Playwright, program: str) -> Browser:
    # Its sandbox does not work for root, and the page in it is ours.
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    return await playwright.chromium.launch(executable_path=program, args=[*OPTIONS, *root])
