"""What axe finds, on pages of a few lines."""

from typing import TYPE_CHECKING

import pytest
from accessibility import accessible

if TYPE_CHECKING:
    from conftest import Pages, Visit


async def test_a_good_page_is_accessible(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show(body="<h1>Here</h1><button>Send</button>"))
    await accessible(visitor.page)


async def test_what_is_wrong_is_listed(pages: "Pages", visit: "Visit") -> None:
    body = '<h1>Here</h1><button id="mute"></button><nav><input id="nameless"></nav>'
    visitor = await visit(pages.show(body=body))
    with pytest.raises(AssertionError) as told:
        await accessible(visitor.page)
    assert "critical: Buttons must have discernible text (button-name, https://" in str(told.value)
    assert "#mute\n        Fix any of the following:" in str(told.value)
    assert "#nameless" in str(told.value)
    with pytest.raises(AssertionError) as told:
        await accessible(visitor.page, "nav")
    assert "#mute" not in str(told.value)


async def test_colours_that_nobody_can_read_are_told(pages: "Pages", visit: "Visit") -> None:
    visitor = await visit(pages.show("document.querySelector('h1').style.color = '#eee'"))
    with pytest.raises(AssertionError, match="color-contrast"):
        await accessible(visitor.page)
