"""The chat page as a visitor sees it: what can be done there, by role and by name. The only place that knows
how things on it are called."""

from playwright.async_api import Locator, Page


class ChatPage:
    """English, as its names are here."""

    def __init__(self, page: Page) -> None:
        self.page = page

    # ── what there is ────────────────────────────────────────────────────────────────────────────

    @property
    def message(self) -> Locator:
        """Where one writes."""
        return self.page.get_by_role("textbox", name="Message")

    @property
    def answers(self) -> Locator:
        return self.page.get_by_role("article", name="Answer")

    def answer(self, number: int) -> Locator:
        """Counted from 1; -1 is the last one."""
        return self.answers.nth(number - 1 if number > 0 else number)

    @property
    def model(self) -> Locator:
        """Where one chooses whom to ask."""
        return self.page.get_by_role("combobox", name="Model")

    # ── what one does ────────────────────────────────────────────────────────────────────────────

    async def send(self, text: str) -> None:
        await self.message.fill(text)
        await self._button("Send").click()

    async def stop(self) -> None:
        await self._button("Stop").click()

    async def new_chat(self) -> None:
        await self._button("New chat").click()

    def _button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)
