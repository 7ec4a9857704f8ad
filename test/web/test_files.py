"""Files that go along with a message: chosen, pasted, dropped, refused."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pages import ChatPage
from playwright.async_api import FilePayload, expect
from scripted import Upstream

if TYPE_CHECKING:
    from conftest import Visit

    from test.conftest import RunServer, Server

NOTES = FilePayload(name="notes.txt", mimeType="text/plain", buffer="Gates: 3\n水".encode())


def png() -> bytes:
    """One white point."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_)

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    points = zlib.compress(b"\x00\xff\xff\xff")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", points) + chunk(b"IEND", b"")


PICTURE = FilePayload(name="white.png", mimeType="image/png", buffer=png())


@pytest.fixture(scope="module")
def picky_server(run_server: "RunServer", all_upstream: Upstream) -> Iterator["Server"]:
    """Takes small files. One of its models sees."""
    models = [all_upstream.model("scripted"), all_upstream.model("seeing", images=True)]
    with run_server({"models": models, "storage": {"titles": False}, "files": {"max_bytes": 1000}}) as server:
        yield server


async def test_a_chosen_file_reaches_the_model_and_is_there_after_a_reload(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    await chat.attach(NOTES)
    await expect(chat.files).to_have_text(["notes.txt"])
    await chat.send("How many gates?")
    turn = await upstream.asked()
    assert "Gates: 3\n水" in turn.question
    assert "notes.txt" in turn.question
    assert turn.question.endswith("How many gates?")
    await turn.answer("Three.")
    await chat.ended()
    await expect(chat.files).to_have_count(0)
    await expect(chat.sent_files).to_have_text(["notes.txt"])
    await visitor.page.reload()
    await expect(chat.sent_files).to_have_text(["notes.txt"])
    await expect(chat.questions).to_have_text(["notes.txtHow many gates?"])
    # What is said otherwise, or answered again, has it still.
    await chat.edit(1, "How many, in words?")
    turn = await upstream.asked()
    assert "Gates: 3\n水" in turn.question
    assert turn.question.endswith("How many, in words?")
    await turn.answer("three")
    await chat.ended()
    await chat.button("Answer again").click()
    again = await upstream.asked()
    assert again.question == turn.question
    await again.answer("THREE")
    await chat.ended()
    await expect(chat.sent_files).to_have_text(["notes.txt"])


async def test_a_file_is_pasted_and_a_text_is_not_taken_for_one(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.paste("pasted.txt", "from the clipboard")
    await expect(chat.files).to_have_text(["pasted.txt"])
    await chat.send("Well?")
    turn = await upstream.asked()
    assert "from the clipboard" in turn.question
    await turn.answer("Yes.")


async def test_a_file_is_dropped_anywhere(server: "Server", upstream: Upstream, visit: "Visit") -> None:
    chat = ChatPage((await visit(server)).page)
    await chat.drop("dropped.txt", "from the desk")
    await expect(chat.files).to_have_text(["dropped.txt"])
    # A file says enough without words.
    await chat.button("Send").click()
    turn = await upstream.asked()
    assert "from the desk" in turn.question
    await turn.answer("I see.")
    await expect(chat.text_of(1)).to_have_text("I see.")


async def test_a_file_that_was_removed_is_not_sent(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    chat = ChatPage((await visit(server)).page)
    other = FilePayload(name="other.txt", mimeType="text/plain", buffer=b"another one")
    await chat.attach(NOTES, other)
    await expect(chat.files).to_have_text(["notes.txt", "other.txt"])
    await chat.button("Remove notes.txt").click()
    await expect(chat.files).to_have_text(["other.txt"])
    await expect(chat.message).to_be_focused()
    await chat.send("Well?")
    turn = await upstream.asked()
    assert "another one" in turn.question
    assert "Gates" not in turn.question
    await turn.answer("Yes.")


async def test_a_file_is_not_forgotten_while_it_is_on_its_way(
    server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(server)
    chat = ChatPage(visitor.page)
    gate = await visitor.hold("**/v1/files")
    await chat.attach(NOTES)
    await gate.reached()
    await chat.send("How many?")
    await expect(chat.problems).to_have_text(["Wait until the files are uploaded."])
    await expect(chat.message).to_have_value("How many?")
    gate.open()
    await expect(chat.files).to_have_text(["notes.txt"])
    await chat.button("Send").click()
    turn = await upstream.asked()
    assert "Gates: 3" in turn.question
    await turn.answer("Three.")


async def test_what_cannot_be_attached_says_why_in_its_place_and_hinders_nothing(
    picky_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(picky_server)
    visitor.may_complain.append("status of (413|415|400)")
    chat = ChatPage(visitor.page)
    large = FilePayload(name="large.txt", mimeType="text/plain", buffer=b"word " * 1000)
    strange = FilePayload(name="tool.bin", mimeType="application/octet-stream", buffer=bytes(range(256)))
    empty = FilePayload(name="empty.txt", mimeType="text/plain", buffer=b"")
    await chat.attach(large, strange, empty, NOTES)
    await expect(chat.files).to_have_text(
        [
            "large.txt: A file has at most 1000 bytes.",
            (
                "tool.bin: This file is neither UTF-8 text nor anything else known here; this server takes: "
                "text/plain, image/png, image/jpeg, image/gif, image/webp."
            ),
            "empty.txt: The file is empty.",
            "notes.txt",
        ]
    )
    await chat.send("How many?")
    turn = await upstream.asked()
    assert "Gates: 3" in turn.question
    assert "word" not in turn.question
    await turn.answer("Three.")
    await expect(chat.files).to_have_count(0)


async def test_a_picture_is_for_models_that_see(
    picky_server: "Server", upstream: Upstream, visit: "Visit"
) -> None:
    visitor = await visit(picky_server)
    chat = ChatPage(visitor.page)
    await chat.attach(PICTURE)
    await expect(chat.files).to_have_text(["white.png"])
    await chat.send("What is it?")
    await expect(chat.refusal).to_have_text("The model 'scripted' cannot do this: images.")
    # Nothing is lost: it is asked again of one who sees.
    await chat.button("Discard").click()
    await expect(chat.message).to_have_value("What is it?")
    await expect(chat.files).to_have_text(["white.png"])
    await chat.choose("seeing")
    await chat.button("Send").click()
    turn = await upstream.asked("seeing")
    parts = turn.body["messages"][-1]["content"]
    assert any(
        part.get("image_url", {}).get("url", "").startswith("data:image/png;base64,") for part in parts
    )
    await turn.answer("White.")
    await expect(chat.text_of(1)).to_have_text("White.")
    await visitor.page.reload()
    picture = visitor.page.get_by_role("img", name="Attached: white.png")
    await expect(picture).to_be_visible()
    # It has its name before it is read.
    await expect(picture).to_have_js_property("naturalWidth", 1)


async def test_more_files_than_a_message_takes_are_not_silently_left_out(
    server: "Server", visit: "Visit", tmp_path: Path
) -> None:
    chat = ChatPage((await visit(server)).page)
    many = [FilePayload(name=f"{n}.txt", mimeType="text/plain", buffer=b"x") for n in range(17)]
    await chat.attach(*many)
    await expect(chat.files).to_have_count(16)
    await expect(chat.problems).to_have_text(["A message takes 16 files at most."])
