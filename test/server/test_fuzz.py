"""Whatever /openapi.json allows, and much that it does not, gets an answer as it is described there."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
)

from internal.biz.files import FileRules, Files, FileStore, Quota
from internal.data.file_folder import FileFolder

if TYPE_CHECKING:
    from test.server.conftest import Api

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
]
EXAMPLES = 7
"""Of each operation, of good requests and of bad ones."""


class Place:
    """Where the application answers, and who asks."""

    def __init__(self) -> None:
        self.url = ""
        self.token = ""


@pytest.fixture(scope="module")
def place(
    api_type: "type[Api]", file_store: FileStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """The application on a loop of its own: schemathesis blocks the one it is on."""
    place, ready, loop = Place(), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    files = Files(file_store, FileFolder(tmp_path_factory.mktemp("files")), FileRules(quota=Quota(0, 0)))

    async def serve() -> None:
        async with api_type(max_body_bytes=1 << 20, files=files).serving() as api, api.engine.answering():
            place.url = str(api.client.make_url("/"))
            place.token = await api.user()
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    with contextlib.ExitStack() as after:
        after.callback(loop.close)
        after.callback(thread.join)
        after.callback(loop.call_soon_threadsafe, stop.set)
        assert ready.wait(10)
        yield place


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_api_is_as_described(place: Place, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{place.url}openapi.json")
    seen = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case[Any]) -> None:
            response = case.call(headers={"Authorization": f"Bearer {place.token}"})
            # In a form everything is text: much that is of a wrong type cannot be told from what is right.
            # And of what is too large nobody looks at the rest.
            is_form, is_too_large = case.media_type == "multipart/form-data", response.status_code == 413
            checks = [it for it in CHECKS if it is not negative_data_rejection]
            case.validate_response(response, checks=checks if is_form or is_too_large else CHECKS)

        with contextlib.suppress(Unsatisfiable):  # where nothing is sent, nothing can be wrong
            check()
            seen += 1
    assert seen > 15
