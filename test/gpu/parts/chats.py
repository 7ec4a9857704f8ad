"""Clients in a process of their own: chats at a time, each on a WebSocket, of which everything is kept.

    python chats.py         a line of JSON in: url, model, questions, tokens, spoken
                            lines out: "spoken" when every chat has had so many frames of text; then what came

While answers come it does as little as it can, so that it is not itself what is measured.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import aiohttp
import orjson
import uvloop

MARK = "sluice-chats: "
"""Begins the lines that are for who has started this."""
SPOKEN = "spoken"
PATIENCE_S = 120.0
_DELTA = b'{"type":"response.output_text.delta"'
_TERMINAL = frozenset(("response.completed", "response.incomplete", "response.failed"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """`questions`: one for each chat. An answer has exactly `tokens`."""

    url: str
    model: str
    questions: list[str]
    tokens: int
    spoken: int = 1


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer. `at_s`: when text came, in seconds after all had been asked, and `chars` how much there was
    then. `fault`: what is wrong with the events, or how it failed; empty where all is well."""

    text: str
    output_tokens: int
    at_s: list[float]
    chars: list[int]
    fault: str


@dataclass(frozen=True, slots=True)
class Round:
    """`seconds`: from the first question to the last end."""

    answers: list[Heard]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(answer.output_tokens for answer in self.answers)

    @property
    def faults(self) -> list[str]:
        return [answer.fault for answer in self.answers if answer.fault]


def parse(line: str) -> Round:
    found = json.loads(line)
    return Round([Heard(**answer) for answer in found["answers"]], found["seconds"])


class Chat:
    """Keeps frames as they come, and looks at them when all is over."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse[Any]", spoken: Callable[[], None]) -> None:
        self._socket = socket
        self._spoken = spoken
        self._frames: list[tuple[float, bytes]] = []
        self.error = ""

    async def ask(self, wanted: Wanted, question: str) -> None:
        request = {
            "type": "response.create",
            "model": wanted.model,
            "input": question,
            "temperature": 0,
            "max_output_tokens": wanted.tokens,
            "min_tokens": wanted.tokens,
            "store": False,
        }
        await self._socket.send_str(json.dumps(request))

    async def hear(self, wanted: Wanted) -> None:
        left = wanted.spoken
        while True:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                self.error = f"the connection ended: {message.type.name} {message.data} {message.extra or ''}"
                break
            frame: bytes = message.data
            self._frames.append((time.perf_counter(), frame))
            if frame.startswith(_DELTA):
                left -= 1
                if not left:
                    self._spoken()
            elif (event := orjson.loads(frame))["type"] in _TERMINAL or event["type"] == "error":
                break
        if left > 0:
            self._spoken()

    def heard(self, since_s: float) -> Heard:
        events = [(at_s - since_s, orjson.loads(frame)) for at_s, frame in self._frames]
        deltas = [(at_s, event) for at_s, event in events if event["type"] == "response.output_text.delta"]
        text = "".join(event["delta"] for _, event in deltas)
        last = events[-1][1] if events else {}
        response = last.get("response") or {}
        output_tokens = (response.get("usage") or {}).get("output_tokens", 0)
        at_s, chars = [at_s for at_s, _ in deltas], accumulate(len(event["delta"]) for _, event in deltas)
        return Heard(text, output_tokens, at_s, list(chars), self.error or _fault(events, text))


def _fault(events: list[tuple[float, dict[str, Any]]], text: str) -> str:
    last = events[-1][1]
    if last["type"] in ("error", "response.failed"):
        return str(last.get("error") or last["response"]["error"])
    numbers = [event["sequence_number"] for _, event in events if "sequence_number" in event]
    if any(after <= before for before, after in pairwise(numbers)):
        return "an event came twice, or out of order"
    whole = "".join(part["text"] for item in last["response"]["output"] for part in item.get("content", ()))
    return "" if whole == text else "the deltas are not the text of the finished response"


async def converse(wanted: Wanted, spoken: Callable[[], None]) -> Round:
    """All chats at a time: first all connect, then all ask."""
    left = len(wanted.questions)

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            spoken()

    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        chats = []
        for _ in wanted.questions:
            socket = await stack.enter_async_context(
                session.ws_connect(wanted.url, max_msg_size=1 << 25, decode_text=False)
            )
            chats.append(Chat(socket, count))
        begun_s = time.perf_counter()
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            for chat, question in zip(chats, wanted.questions, strict=True):
                await chat.ask(wanted, question)
                tasks.create_task(chat.hear(wanted))
        seconds = time.perf_counter() - begun_s
    return Round([chat.heard(begun_s) for chat in chats], seconds)


def main() -> None:
    wanted = Wanted(**json.loads(sys.stdin.readline()))
    heard = uvloop.run(converse(wanted, lambda: print(f"{MARK}{SPOKEN}", flush=True)))
    print(MARK + json.dumps(asdict(heard)), flush=True)


if __name__ == "__main__":
    main()
