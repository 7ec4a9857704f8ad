"""What a real server process with a model on the GPU says to a plain WebSocket."""

import asyncio

import aiohttp
from outcome import Notebook
from programs import MODEL, site
from questions import CAPITAL
from task import Task

PATIENCE_S = 60.0
SILENCE_S = 3.0
"""Bare text has no end: so long nothing came, after something had."""


async def run(task: Task, book: Notebook) -> None:
    async with site(task, "memory", 4) as served, aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{served.url}/ws?model={MODEL}") as socket:
            await socket.send_str(CAPITAL)
            said = await _said(socket)
        frames = len(said)
        text = "".join(said)
        book.check(f"/ws: {CAPITAL}", "Paris" in text and frames > 1, f"{text} ({frames} frames)")
        name = "sluice_engine_generated_tokens_total"
        counted = sum(served.server.samples(name).values())
        book.check("/metrics counts the engine's tokens", counted >= frames, f"{counted:g} tokens")


async def _said(socket: "aiohttp.ClientWebSocketResponse[bool]") -> list[str]:
    frames: list[str] = []
    while True:
        try:
            async with asyncio.timeout(SILENCE_S if frames else PATIENCE_S):
                frames.append(str(await socket.receive_str()))
        except TimeoutError:
            return frames
