"""What is written is what is read: requests, and logs of every shape."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.errors import GenerationFailed, InvalidRequest
from internal.biz.events import Event, ReasoningDelta, ScoredDelta, TextDelta, scores_of
from internal.biz.generation import Finished, FinishReason
from internal.biz.models import (
    Message,
    OutputFormat,
    Request,
    Role,
    Sampling,
    Seat,
    Settings,
    Tool,
    ToolCall,
    Tooling,
    Truncation,
    Usage,
)
from internal.biz.sampling import RareSampling
from internal.biz.scores import TokenScore
from internal.data.redis.entries import (
    END,
    Decoder,
    decode_log,
    dump_request,
    encode,
    head_of,
    load_request,
    parse,
)

if TYPE_CHECKING:
    from test.data.redis.conftest import Log

    WriteLog = Callable[..., Log]

tokens = st.integers(0, 2**53)
schemas = st.dictionaries(st.text(), st.text() | st.booleans() | st.integers(0, 9), max_size=2)
messages = st.lists(st.builds(Message, st.sampled_from(Role), st.text())).map(tuple)
requests = st.builds(
    Request,
    response_id=st.text(min_size=1),
    model=st.text(),
    user=st.text(),
    created_at=st.floats(0, 1e11),
    messages=messages,
    settings=st.builds(
        Settings,
        instructions=st.none() | st.text(),
        previous_response_id=st.none() | st.text(),
        max_output_tokens=st.none() | st.integers(1, 2**53),
        sampling=st.builds(
            Sampling,
            temperature=st.none() | st.floats(0, 2),
            seed=st.none() | st.integers(-(2**63), 2**63 - 1),
            rare=st.none()
            | st.builds(
                RareSampling,
                top_a=st.none() | st.floats(0, 1),
                temperature_last=st.none() | st.booleans(),
                dry_sequence_breakers=st.lists(st.text(), max_size=2).map(tuple),
                logit_bias=st.lists(
                    st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 100)), max_size=2
                ).map(tuple),
                min_tokens=st.none() | st.integers(0, 2**31 - 1),
            ),
        ),
        stop=st.lists(st.text(), max_size=2).map(tuple),
        output_format=st.none()
        | st.builds(OutputFormat, st.none() | schemas, st.text(), st.booleans(), st.none() | st.text()),
        logprobs=st.none() | st.integers(0, 20),
        tooling=st.builds(
            Tooling,
            st.lists(st.builds(Tool, st.text(), st.none() | st.text(), schemas), max_size=2).map(tuple),
            st.sampled_from(("auto", "none", "required")),
            st.none() | st.text(),
        ),
        truncation=st.sampled_from(Truncation),
        store=st.booleans(),
        metadata=st.dictionaries(st.text(), st.text()),
    ),
    batch=st.none() | st.builds(Seat, st.text(), st.integers(0, 7)),
)
calls = st.builds(ToolCall, st.text(), st.text(), st.text())
logprobs = st.floats(-9999, 0)
scores = st.builds(
    TokenScore, st.text(), logprobs, st.lists(st.tuples(st.text(), logprobs), max_size=2).map(tuple)
)
sayings = (
    st.builds(TextDelta, st.text())
    | st.builds(ScoredDelta, st.text(), st.lists(scores, max_size=2).map(tuple))
    | st.builds(ReasoningDelta, st.text())
    | calls
)
attempts = st.lists(st.lists(sayings), min_size=1, max_size=3)
ends = st.builds(
    Finished,
    st.sampled_from(FinishReason),
    st.builds(Usage, tokens, tokens, tokens, tokens),
    st.none() | st.builds(lambda message: GenerationFailed(message, code="x"), st.text()),
)


@given(requests)
def test_a_request_is_read_as_it_was_written(request: Request) -> None:
    assert load_request(dump_request(request)) == request


def test_a_request_that_an_older_version_wrote_is_read_as_it_was_meant() -> None:
    request = Request("resp_1", "m", "ada", 1.0, (Message(Role.USER, "hi"),), Settings(max_output_tokens=5))
    written = orjson.loads(dump_request(request))
    del written["settings"]["sampling"]
    written["settings"] |= {"temperature": 0.2, "top_p": None}
    read = load_request(orjson.dumps(written))
    assert read.settings == Settings(max_output_tokens=5, sampling=Sampling(temperature=0.2))


def test_a_request_from_before_rare_sampling_and_patterns_is_read() -> None:
    settings = Settings(sampling=Sampling(top_k=3), output_format=OutputFormat({"type": "object"}, "x"))
    request = Request("resp_1", "m", "ada", 1.0, (Message(Role.USER, "hi"),), settings)
    written = orjson.loads(dump_request(request))
    del written["settings"]["sampling"]["rare"], written["settings"]["output_format"]["pattern"]
    assert load_request(orjson.dumps(written)) == request


def test_a_request_from_before_branches_is_read() -> None:
    settings = Settings(conversation_id="conv_1")
    request = Request("resp_1", "m", "ada", 1.0, (Message(Role.USER, "hi"),), settings)
    written = orjson.loads(dump_request(request))
    del written["settings"]["replaces"]
    assert load_request(orjson.dumps(written)) == request


@given(requests)
def test_followers_need_no_messages(request: Request) -> None:
    head = load_request(dump_request(head_of(request)))
    assert head.messages == ()
    assert (head.response_id, head.model, head.user) == (request.response_id, request.model, request.user)
    assert (head.created_at, head.settings) == (request.created_at, request.settings)
    assert head.batch == request.batch


@given(request=requests, attempts=attempts, end=st.none() | ends, position=st.integers(0, 10**6))
def test_a_log_is_read_as_it_was_written(
    write_log: "WriteLog", request: Request, attempts: Any, end: Finished | None, position: int
) -> None:
    log = write_log(request, attempts, end, position=position)
    read = decode_log(log.head, log.entries)
    assert list(read) == log.events
    # The classes of deltas are those of strings, and equal to them.
    assert [type(event) for event in read] == [type(event) for event in log.events]
    assert scores_of(map(_text, read)) == scores_of(map(_text, log.events))


def _text(event: Event) -> str:
    return event if isinstance(event, str) else ""


@given(attempts=attempts, end=ends, cuts=st.lists(st.integers(0, 40)))
def test_a_log_may_be_read_in_any_pieces(
    write_log: "WriteLog", attempts: Any, end: Finished, cuts: list[int]
) -> None:
    log = write_log(Request("resp_1", "m", "ada", 0.0, (), Settings()), attempts, end)
    decoder, read, at = Decoder(log.head), list[Any](), 0
    for cut in [*sorted(cuts), len(log.entries)]:
        read += decoder.decode(parse(log.entries[at:cut]))
        at = max(at, cut)
    assert read == log.events


@given(attempts=attempts, end=ends)
def test_only_the_end_begins_as_an_end_does(write_log: "WriteLog", attempts: Any, end: Finished) -> None:
    log = write_log(Request("resp_1", "m", "ada", 0.0, (), Settings()), attempts, end)
    assert [entry.startswith(END) for entry in log.entries] == [False] * (len(log.entries) - 1) + [True]


def test_a_token_costs_few_bytes() -> None:
    assert encode(TextDelta("Hello")) == b'"Hello"'
    scored = ScoredDelta("é", (TokenScore("é", -0.5, (("e", -1.0),)),))
    assert encode(scored) == '["t","é",[["é",-0.5,[["e",-1.0]]]]]'.encode()


@given(text=st.text(min_size=1))
def test_a_text_cannot_pass_for_anything_else(text: str) -> None:
    for shape in (text, f'["end",{text}]', '"', "\\", "\n", "\x00", '["created"]'):
        entry = encode(TextDelta(shape))
        assert not entry.startswith(b"[")
        assert parse([entry, entry]) == [shape, shape]


VALID = orjson.loads(
    dump_request(Request("resp_1", "m", "ada", 1.0, (Message(Role.USER, "hi"),), Settings()))
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        orjson.dumps({**VALID, "messages": "hi"}),
        orjson.dumps({**VALID, "messages": [{"role": "king", "content": "hi"}]}),
        orjson.dumps({**VALID, "created_at": "yesterday"}),
        orjson.dumps({key: value for key, value in VALID.items() if key != "settings"}),
    ],
)
def test_what_is_no_request_is_told_so_without_its_words(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as error:
        load_request(data)
    assert error.value.code == "request_undecodable"
    assert "king" not in error.value.message


@given(st.binary())
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        load_request(data)


@pytest.mark.parametrize(
    "entry", [b"1", b"null", b"{}", b"[]", b'["future"]', b'["item"]', b'["item","song"]', b'["end",{}]']
)
def test_an_entry_of_another_version_is_an_error(entry: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_log(Request("resp_1", "m", "ada", 0.0, (), Settings()), [b'["created"]', entry])
