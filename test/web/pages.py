"""The chat page as a visitor sees it: what can be done there, by role and by name. The only place that knows
how things on it are called."""

from playwright.async_api import FilePayload, Locator, Page, expect

# A file comes as from a clipboard, or from a desk.
_BRING = """(target, [type, name, text]) => {
  const things = new DataTransfer();
  things.items.add(new File([text], name, {type: "text/plain"}));
  const options = {bubbles: true, cancelable: true};
  target.dispatchEvent(type === "paste"
    ? new ClipboardEvent(type, {...options, clipboardData: things})
    : new DragEvent(type, {...options, dataTransfer: things}));
}"""

_WATCH_CONNECTION = """() => {
  window.told = [];
  const sign = document.querySelector(".connection");
  new MutationObserver(() => sign.hidden || told.push(sign.textContent)).observe(sign, { attributes: true });
}"""


class ChatPage:
    """English, as its names are here."""

    def __init__(self, page: Page) -> None:
        self.page = page

    # ── what there is ────────────────────────────────────────────────────────────────────────────

    @property
    def message(self) -> Locator:
        """Where one writes."""
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def questions(self) -> Locator:
        """What was asked, the files with it, and the buttons beneath; without what waits to be sent."""
        return self.page.get_by_role("group", name="You")

    @property
    def answers(self) -> Locator:
        return self.page.get_by_role("article", name="Answer")

    def answer(self, number: int) -> Locator:
        """Counted from 1; -1 is the last one."""
        return self.answers.nth(number - 1 if number > 0 else number)

    def text_of(self, number: int) -> Locator:
        """What an answer says, without what surrounds it."""
        return self.answer(number).locator(".body")

    def answer_of(self, model: str) -> Locator:
        """The last one of a model."""
        return self.page.get_by_role("article", name=f"Answer of {model}", exact=True).last

    def who_answered(self, number: int) -> Locator:
        """The name of the model."""
        return self.answer(number).locator(".who")

    def facts_of(self, number: int) -> Locator:
        """How long an answer was, and how fast."""
        return self.answer(number).locator(".facts")

    def status_of(self, number: int) -> Locator:
        """What an answer waits for, or how it ended."""
        return self.answer(number).get_by_role("status", include_hidden=True)

    @staticmethod
    def text_in(answer: Locator) -> Locator:
        """As `text_of`, of an answer that was found, or of several."""
        return answer.locator(".body")

    @staticmethod
    def status_in(answer: Locator) -> Locator:
        return answer.get_by_role("status", include_hidden=True)

    @property
    def current_answers(self) -> Locator:
        """Those of several that the chat goes on with."""
        return self.page.locator(".answer.current")

    @property
    def files(self) -> Locator:
        """What will go along with the message that is being written."""
        return self.page.locator(".composer").get_by_role("listitem")

    @property
    def sent_files(self) -> Locator:
        return self.questions.locator(".chip")

    @property
    def version(self) -> Locator:
        """Which of how many is shown, where there are several versions of a turn."""
        return self.page.locator(".variants:visible > span")

    @property
    def edited(self) -> Locator:
        """A message that is being said otherwise."""
        return self.page.get_by_role("textbox", name="Edit the message")

    @property
    def thinking(self) -> Locator:
        """The fold with the thoughts of the last answer."""
        return self.answer(-1).locator("details")

    @property
    def thoughts_line(self) -> Locator:
        """What is left of it when it is closed."""
        return self.thinking.locator("summary")

    @property
    def thoughts(self) -> Locator:
        """What the last answer thinks, whether or not the fold is open."""
        return self.thinking.locator(".thoughts")

    @property
    def waiting(self) -> Locator:
        """Messages that the server has not taken yet."""
        return self.page.locator(".turn.waiting")

    @property
    def refusal(self) -> Locator:
        """Why the server did not take a message."""
        return self.waiting.get_by_role("alert").get_by_role("paragraph")

    @property
    def chats(self) -> Locator:
        return self.page.get_by_role("navigation", name="Chats").get_by_role("link")

    @property
    def running_chats(self) -> Locator:
        """Those with a sign that they are being answered."""
        return self.page.get_by_role("navigation", name="Chats").locator(".running").get_by_role("link")

    @property
    def days(self) -> Locator:
        """What stands over the chats of a time."""
        return self.page.get_by_role("navigation", name="Chats").get_by_role("heading")

    @property
    def nothing_listed(self) -> Locator:
        """Said where there are no chats."""
        return self.page.get_by_role("navigation", name="Chats").get_by_role("paragraph")

    @property
    def search(self) -> Locator:
        return self.page.get_by_role("searchbox", name="Search chats")

    @property
    def title(self) -> Locator:
        """The name of the chat that is shown."""
        return self.page.get_by_role("banner").get_by_role("heading")

    @property
    def model(self) -> Locator:
        """Says who is asked, and opens the list of who can be."""
        return self.button("Choose a model", exact=False)

    @property
    def connection(self) -> Locator:
        """The sign that says that the connection is lost, or back."""
        return self.page.locator(".connection")

    @property
    def problems(self) -> Locator:
        """What went wrong, where it did: at a message or an answer, or over the page."""
        return self.page.locator(".problem:visible, .toast")

    def account(self, name: str) -> Locator:
        """Says which user one is."""
        return self.button(f"Account: {name}")

    def button(self, name: str, *, exact: bool = True) -> Locator:
        return self.page.get_by_role("button", name=name, exact=exact)

    # ── what one does ────────────────────────────────────────────────────────────────────────────

    async def send(self, text: str) -> None:
        await self.message.fill(text)
        await self.button("Send").click()

    async def ask(self, text: str) -> None:
        """Send, and wait for the end of the answer, or of all of them."""
        before = await self.answers.count()
        await self.send(text)
        await expect(self.answers.nth(before)).to_be_visible()
        await self.ended()

    async def ended(self) -> None:
        """Wait until nothing is being answered, nor waits to be."""
        # At one look: between two of them an answer may begin.
        await expect(self.page.locator('[aria-busy="true"], .turn.waiting')).to_have_count(0)

    async def stop(self) -> None:
        await self.button("Stop").click()

    async def go_on_with(self, model: str) -> None:
        answer = self.answer_of(model)
        await answer.get_by_role("button", name="Go on with this answer").click()

    async def attach(self, *files: FilePayload) -> None:
        """By the chooser."""
        async with self.page.expect_file_chooser() as chooser:
            await self.button("Attach a file").click()
        await (await chooser.value).set_files(list(files))

    async def paste(self, name: str, text: str) -> None:
        await self.message.evaluate(_BRING, ["paste", name, text])

    async def drop(self, name: str, text: str) -> None:
        await self.page.get_by_role("main").evaluate(_BRING, ["drop", name, text])

    async def edit(self, number: int, text: str) -> None:
        """Say something else in the place of a message, and send it."""
        question = self.questions.nth(number - 1)
        await question.hover()
        await question.get_by_role("button", name="Edit the message").click()
        await self.edited.fill(text)
        await self.page.keyboard.press("Enter")

    def setting(self, name: str) -> Locator:
        return self.page.get_by_role("dialog", name="Settings").get_by_label(name, exact=True)

    async def set(self, temperature: str, longest: str, system: str) -> None:
        """Say how models are to answer from now on."""
        await self.button("Settings").click()
        await self.setting("Temperature").fill(temperature)
        await self.setting("Longest answer, in tokens").fill(longest)
        await self.setting("System prompt").fill(system)
        await self.button("Save").click()
        await expect(self.page.get_by_role("dialog")).to_have_count(0)

    async def tab_to(self, target: Locator, *, backwards: bool = False) -> None:
        """By the keyboard alone."""
        for _ in range(50):
            if await target.evaluate("(element) => element === document.activeElement"):
                return
            await self.page.keyboard.press("Shift+Tab" if backwards else "Tab")
        raise AssertionError("it cannot be reached by the keyboard")

    async def watch_connection(self) -> None:
        """Keep what its sign says from now on, however short."""
        await self.page.evaluate(_WATCH_CONNECTION)

    async def connection_said(self) -> list[str]:
        """Since it is watched."""
        said: list[str] = await self.page.evaluate("() => told")
        return said

    async def connection_has_said(self, words: str) -> None:
        """Wait until it says so, or has said so since it is watched: some of it is soon gone."""
        await self.page.wait_for_function("(words) => told.includes(words)", arg=words)

    async def new_chat(self) -> None:
        await self.page.get_by_role("link", name="New chat").click()

    async def choose(self, *models: str) -> None:
        """Ask these from now on."""
        await self.model.click()
        menu = self.page.get_by_role("dialog", name="Choose a model")
        if len(models) == 1:
            await menu.get_by_role("button", name=models[0], exact=True).click()
        else:
            for model in models:
                await menu.get_by_role("checkbox", name=f"Ask {model}, too").check()
            for box in await menu.get_by_role("checkbox").all():
                if await box.get_attribute("aria-label") not in {f"Ask {model}, too" for model in models}:
                    await box.uncheck()
            await self.page.keyboard.press("Escape")
        await expect(menu).to_have_count(0)

    async def more(self, title: str, entry: str) -> None:
        """Choose from the menu of a chat."""
        await self.page.get_by_role("link", name=title).hover()
        await self.button(f"More for {title}").click()
        await self.page.get_by_role("menuitem", name=entry).click()

    async def delete(self, title: str) -> None:
        await self.more(title, "Delete")
        await self.page.get_by_role("dialog").get_by_role("button", name="Delete").click()

    async def sign_in(self, name: str, password: str) -> None:
        """From the page of a guest."""
        await self.page.get_by_role("complementary").get_by_role("button", name="Sign in").click()
        form = self.page.get_by_role("dialog", name="Sign in")
        await form.get_by_label("User name").fill(name)
        await form.get_by_label("Password").fill(password)
        await form.get_by_role("button", name="Sign in", exact=True).click()
        await expect(self.button(f"Account: {name}")).to_be_visible()

    async def sign_out(self) -> None:
        await self.button("Account:", exact=False).click()
        await self.page.get_by_role("menuitem", name="Sign out").click()

    async def open_menu(self) -> None:
        """Show the chats, where there is no room for them beside the page."""
        await self.button("Menu").click()

    async def open_settings(self) -> Locator:
        """The dialog."""
        await self.button("Settings").click()
        return self.page.get_by_role("dialog", name="Settings")


class SignInForm:
    """Over the page, or in its place."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @property
    def name(self) -> Locator:
        return self.page.get_by_label("User name")

    @property
    def password(self) -> Locator:
        return self.page.get_by_label("Password")

    @property
    def hint(self) -> Locator:
        return self.page.get_by_text("What you said as a guest is kept.")

    @property
    def problem(self) -> Locator:
        return self.page.locator("form").get_by_role("alert")

    async def fill(self, name: str, password: str, email: str | None = None) -> None:
        await self.name.fill(name)
        await self.password.fill(password)
        if email is not None:
            await self.page.get_by_label("E-mail").fill(email)

    async def switch_to_sign_up(self) -> None:
        await self.page.get_by_role("button", name="No account yet? Sign up").click()

    async def go(self, name: str) -> None:
        await self.page.locator("form").get_by_role("button", name=name, exact=True).click()
