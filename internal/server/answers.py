"""Answers to plain HTTP requests: JSON, and errors in the API's one shape."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import orjson
from aiohttp import web

from internal.biz.errors import GenerationFailed, InvalidRequest, SluiceError, Unauthenticated
from internal.biz.models import Response
from internal.service.errors import error_body, http_status
from internal.service.rate_limit import refusal_headers

T = TypeVar("T")

NOT_STORED = {"Cache-Control": "no-store"}
"""Of an answer that is one caller's, or true at this moment only."""


def json_answer(body: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def error_answer(error: SluiceError) -> web.Response:
    """The error, and what its status needs beside it. Source: RFC 9110 §11.6.1."""
    response = json_answer({"error": error_body(error)}, http_status(error))
    if isinstance(error, GenerationFailed):
        # An answer was made, and may be paid for. The OpenAI SDKs would have it made twice more.
        response.headers["X-Should-Retry"] = "false"
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    response.headers.update(refusal_headers(error))
    return response


async def described(response: Response, describe: Callable[[Response], T]) -> T:
    """What `describe` makes of it: in a thread when it tells of its tokens, of which there may be a hundred
    thousand."""
    if response.settings.logprobs is None:
        return describe(response)
    return await asyncio.to_thread(describe, response)


async def guarded(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer says to browsers: that it is nothing but what it says it is, and, of an error, that
    it may be another one next time."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    if response.status >= 400:
        response.headers.update(NOT_STORED)


def refused_by_aiohttp(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp refuses, in the API's words."""
    code = error.reason.lower().replace(" ", "_")
    refusal = InvalidRequest(f"{request.method} {request.path}: {error.reason}", code=code)
    response = json_answer({"error": error_body(refusal)}, error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
