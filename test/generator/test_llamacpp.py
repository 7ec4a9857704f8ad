"""The llama.cpp engine, on a llama.cpp that says what the test wrote, and once on the real one."""

import contextlib
import gc
import json
import re
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.errors import GenerationFailed, InvalidRequest, UnsupportedParameter
from internal.biz.events import Event, ReasoningDelta, ResponseQueued, TextDelta, scores_of
from internal.biz.generation import Delivery, Finished, FinishReason, Job, Output, Prefilled, Transcript
from internal.biz.models import (
    Message,
    OutputFormat,
    Request,
    Response,
    Role,
    Sampling,
    Settings,
    Status,
    Tool,
    ToolCall,
    Tooling,
    Truncation,
)
from internal.biz.sampling import RareSampling
from internal.biz.scores import TokenScore
from internal.generator.llamacpp import LlamaCppGenerator, LlamaCppOptions
from internal.generator.prompt import Piece

if TYPE_CHECKING:
    from test.conftest import Sink

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
OPENING_TEMPLATE = f"{TEMPLATE}<think>\n"


class FakeLlamaCpp(ModuleType):
    """Stands in for the package xllamacpp.

    A token is a character, or a tag where special tokens are parsed. It has one answer to everything,
    `script`, and goes on in the middle of it when that is where the prompt ends.
    """

    def __init__(self) -> None:
        super().__init__("xllamacpp")
        self.script = "so it is"
        self.pause_s = 0.0
        self.requests: list[dict[str, Any]] = []
        self._tags: list[str] = []
        library = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's name
                self._answer({"chat_template": "", "bos_token": "", "eos_token": ""})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer({"tokens": library.tokens(body["content"], body["parse_special"])})

            def _answer(self, value: object) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

            def log_message(self, format: str, *args: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.listening_address = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def CommonParams(self) -> SimpleNamespace:  # noqa: N802  # as in the package
        return SimpleNamespace(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
        )

    def Server(self, params: SimpleNamespace) -> "FakeLlamaCpp":  # noqa: N802
        return self

    def tokens(self, text: str, special: bool) -> list[int]:
        tokens = []
        for part in (
            re.findall(r"</?(?:think|tool_call)>|<(?:user|assistant|system|tool)>|(?s:.)", text)
            if special
            else text
        ):
            if len(part) > 1 and part not in self._tags:
                self._tags.append(part)
            tokens.append(-1 - self._tags.index(part) if len(part) > 1 else ord(part))
        return tokens

    def text(self, token: int) -> str:
        return chr(token) if token >= 0 else self._tags[-1 - token]

    def handle_completions(self, request: dict[str, Any], callback: Callable[[Any], bool]) -> None:
        """As the package's: calls back for each token and with the usage, until that returns True."""
        self.requests.append(request)
        prompt, script = request["prompt"], self.tokens(self.script, special=True)
        (assistant,) = self.tokens("<assistant>", special=True)
        begins = len(prompt) - prompt[::-1].index(assistant)
        said = prompt[begins:]
        assert said == script[: len(said)], "the prompt ends with something that the model did not write"
        script = script[len(said) :]
        progress = {"prompt_progress": {"processed": len(prompt), "total": len(prompt)}}
        if callback(progress | self._choice("")):
            return
        for token in script[: request["n_predict"]]:
            time.sleep(self.pause_s)
            said = self._choice(self.text(token))
            if request.get("n_probs"):
                said["choices"][0]["logprobs"] = {"content": [self._score(token, request["n_probs"])]}
            if callback(said):
                return
        usage = {
            "prompt_tokens": len(prompt),
            "prompt_tokens_details": {"cached_tokens": len(prompt) - 1},
            "completion_tokens": min(len(script), request["n_predict"]),
        }
        whole = len(script) <= request["n_predict"]
        callback(self._choice("", "stop" if whole else "length") | {"usage": usage})

    def _score(self, token: int, count: int) -> dict[str, Any]:
        def likely(text: str, logprob: float) -> dict[str, Any]:
            return {"token": text, "bytes": list(text.encode()), "logprob": logprob}

        tops = [likely(self.text(token), -0.5), {**likely("", -1.0), "bytes": [240, 159]}]
        return {**likely(self.text(token), -0.5), "top_logprobs": [*tops, likely("z", float("-inf"))][:count]}

    def _choice(self, text: str, reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"text": text, "finish_reason": reason}]}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLlamaCpp]:
    library = FakeLlamaCpp()
    monkeypatch.setitem(sys.modules, "xllamacpp", library)
    yield library
    library.close()


class Engines:
    def __init__(self, sink: "Sink", folder: Path) -> None:
        self._sink = sink
        self._folder = folder
        self._engines: list[LlamaCppGenerator] = []

    async def start(self, template: str = TEMPLATE, *, context: int = 1000) -> LlamaCppGenerator:
        model, chat = self._folder / "model.gguf", self._folder / "chat.jinja"
        model.write_bytes(b"weights")
        # Jinja2 takes one newline off the end of a template.
        chat.write_text(f"{template}\n")
        return await self.start_with(_options(model, chat, context))

    async def start_with(self, options: LlamaCppOptions) -> LlamaCppGenerator:
        engine = LlamaCppGenerator(options)
        self._engines.append(engine)
        await engine.start(self._sink, lambda _: None)
        return engine

    async def stop(self) -> None:
        for engine in self._engines:
            await engine.stop()


def _options(path: Path | None, template: Path | None, context: int) -> LlamaCppOptions:
    return LlamaCppOptions(
        path,
        template,
        slots=2,
        context=context,
        threads=0,
        max_output_tokens=512,
        temperature=0.0,
        top_p=1.0,
        repeat_penalty=1.0,
    )


@pytest.fixture
async def engines(
    watched_loop: None, library: FakeLlamaCpp, sink: "Sink", tmp_path: Path
) -> AsyncIterator[Engines]:
    engines = Engines(sink, tmp_path)
    yield engines
    await engines.stop()


def ask(*messages: Message | str, **settings: Any) -> Request:
    turns = tuple(Message(Role.USER, m) if isinstance(m, str) else m for m in messages)
    return Request("r", "m", "ada", 1.0, turns, Settings(**settings))


def begin(request: Request, emitted: Sequence[Event] = ()) -> Transcript:
    """The next attempt at a request whose log holds `emitted`."""
    queued = ResponseQueued(Response.of(request, Status.QUEUED))
    run = Transcript(Delivery(request, 1, tuple(emitted) or (queued,), None))
    run.start()
    return run


def write(run: Transcript, outputs: Sequence[Output]) -> list[Event]:
    """The events that the outputs become."""
    for output in outputs:
        if isinstance(output, Finished):
            run.finish(output)
        elif not isinstance(output, Prefilled):
            run.add(output)
    return list(run.events)


async def attempt(engine: LlamaCppGenerator, sink: "Sink", job: Job) -> list[Output]:
    engine.submit(job)
    outputs = await sink.outputs(job)
    return [output for output in outputs if not isinstance(output, Prefilled)]


def end(outputs: Sequence[Output]) -> Finished:
    last = outputs[-1]
    assert isinstance(last, Finished)
    return last


def thought(outputs: Sequence[Output]) -> str:
    return "".join(output for output in outputs if isinstance(output, ReasoningDelta))


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def text(outputs: Sequence[Output]) -> str:
    return "".join(output for output in outputs if isinstance(output, TextDelta))


async def test_an_answer_is_what_the_model_writes(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    library.script = "<think>\nhm\n</think>\n\nso it is"
    outputs = await attempt(await engines.start(), sink, begin(ask("is it?")))
    assert thought(outputs) == "hm\n"
    assert text(outputs) == "so it is"
    assert end(outputs).reason is FinishReason.STOP
    assert end(outputs).usage.input_tokens == len("Uis it?A")
    assert end(outputs).usage.output_tokens == len("T\nhm\nT\n\nso it is")


# ── going on where an earlier attempt ended ──────────────────────────────────────────────────────

SCRIPTS = [
    (TEMPLATE, "so it is: a < b\n\n<p>"),
    (TEMPLATE, "<think>\nhm, a < b\n\n</think>\n\nso it is"),
    (TEMPLATE, "<think>\nhm</think>\n\nso it is"),
    (OPENING_TEMPLATE, "<think>\nhm, a < b\n\n</think>\n\nso it is"),
    (OPENING_TEMPLATE, "<think>\n\n</think>\n\nso it is"),
    (f"{TEMPLATE}<think>", "<think>\nhm\n</think>\n\nso it is"),
]


@pytest.mark.parametrize("limit", [None, 7, 14])
@pytest.mark.parametrize(("template", "script"), SCRIPTS)
async def test_an_attempt_goes_on_wherever_the_last_one_ended(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink", template: str, script: str, limit: int | None
) -> None:
    engine, library.script = await engines.start(template), script
    request = ask("is it?", max_output_tokens=limit)
    straight = begin(request)
    outputs = await attempt(engine, sink, straight)
    events = write(straight, outputs)
    for cut in range(len(outputs)):
        lost = begin(request)
        queued = ResponseQueued(Response.of(request, Status.QUEUED))
        run = begin(request, (queued, *write(lost, outputs[:cut])))
        rest = await attempt(engine, sink, run)
        assert rest[:-1] == outputs[cut:-1]
        assert write(run, rest)[:-1] == events[run.number - straight.number : -1]
        assert end(rest).reason is end(outputs).reason
        usage, expected = end(rest).usage, end(outputs).usage
        assert (usage.input_tokens, usage.output_tokens) == (expected.input_tokens, expected.output_tokens)
        assert abs(usage.reasoning_tokens - expected.reasoning_tokens) <= 3  # the tags and newlines


async def test_nothing_is_left_to_say_when_the_limit_is_reached(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine = await engines.start()
    job = Job("r", (Message(Role.USER, "x"),), Settings(max_output_tokens=4), "so i")
    (last,) = await attempt(engine, sink, job)
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.LENGTH
    assert (last.usage.input_tokens, last.usage.output_tokens) == (3, 4)
    assert library.requests == []


async def test_an_answer_ends_where_the_context_does_in_however_many_attempts(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script = await engines.start(context=64), "x" * 1000
    for said in range(0, 50, 7):
        job = Job("r", (Message(Role.USER, "u" * 12),), Settings(), "x" * said)
        outputs = await attempt(engine, sink, job)
        # 14 are the prompt's, and one stays free.
        assert len(text(outputs)) == 64 - 14 - 1 - said
        assert end(outputs).reason is FinishReason.LENGTH
        assert end(outputs).usage.output_tokens == 49
    full = Job("r", (Message(Role.USER, "u" * 12),), Settings(), "x" * 60)
    assert end(await attempt(engine, sink, full)).reason is FinishReason.LENGTH


async def test_the_same_turns_are_kept_however_much_was_said(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script = await engines.start(context=100), "x" * 1000
    dialogue = [Message(Role.USER if n % 2 == 0 else Role.ASSISTANT, str(n) * 9) for n in range(9)]
    messages, settings = tuple(dialogue), Settings(truncation=Truncation.AUTO)
    for said in (0, 1, 20):
        await attempt(engine, sink, Job("r", messages, settings, "x" * said))
    first, *later = [request["prompt"] for request in library.requests]
    assert 10 < len(first) < 90
    for prompt, said in zip(later, (1, 20), strict=True):
        assert prompt == first + [ord("x")] * said


# ── stop strings, schemas, tools ─────────────────────────────────────────────────────────────────

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
CALLING_TEMPLATE = """{{ tools | tojson if tools }}{% for m in messages %}<{{ m.role }}>{{ m.content }}
{%- for call in m.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endfor %}<assistant>"""


def call(city: str) -> str:
    return f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


def calls(outputs: Sequence[Output]) -> list[str]:
    return [output.arguments for output in outputs if isinstance(output, ToolCall)]


def shape(outputs: Sequence[object]) -> list[object]:
    """Without the ids of calls, and deltas joined."""
    shapes: list[object] = []
    for output in outputs:
        if isinstance(output, str) and shapes and isinstance(shapes[-1], type(output)):
            shapes[-1] = type(output)(str(shapes[-1]) + output)
        else:
            shapes.append((output.name, output.arguments) if isinstance(output, ToolCall) else output)
    return shapes


async def test_an_answer_ends_before_a_stop_string(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    library.script = "<think>\nnot here: END\n</think>\n\none two END three" + "x" * 900
    outputs = await attempt(await engines.start(), sink, begin(ask("x", stop=("STOP", "END"))))
    assert thought(outputs) == "not here: END\n"
    assert text(outputs) == "one two "
    assert end(outputs).reason is FinishReason.STOP
    assert end(outputs).usage.output_tokens == len("T\nnot here: END\nT\n\none two END")


async def test_a_model_that_stops_in_a_stop_string_has_said_it(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    library.script = "one two EN"
    outputs = await attempt(await engines.start(), sink, begin(ask("x", stop=("END",))))
    assert text(outputs) == "one two EN"
    assert end(outputs).reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("template", "script", "settings"),
    [
        (TEMPLATE, "one E two EN three END four", {"stop": ("END",)}),
        (OPENING_TEMPLATE, "<think>\nEND</think>\n\nEEND", {"stop": ("END",)}),
        (CALLING_TEMPLATE, f"Let me see.\n{call('Köln')}\n{call('Rom')}", {"tooling": Tooling((WEATHER,))}),
        (CALLING_TEMPLATE, f"{call('Köln')}", {"tooling": Tooling((WEATHER,), "required")}),
        (
            CALLING_TEMPLATE,
            f"{call('Köln')}\n{call('Rom')}",
            {"tooling": Tooling((WEATHER,), parallel=False)},
        ),
        (CALLING_TEMPLATE, f"<think>\nhm\n</think>\n\n{call('Köln')}", {"tooling": Tooling((WEATHER,))}),
        (TEMPLATE, '{"name": "Ada"}', {"output_format": OutputFormat(PERSON)}),
        (
            OPENING_TEMPLATE,
            '<think>\nhm\n</think>\n\n{"name": "Ada"}',
            {"output_format": OutputFormat(PERSON)},
        ),
    ],
)
async def test_features_do_not_depend_on_where_an_attempt_ended(
    engines: Engines,
    library: FakeLlamaCpp,
    sink: "Sink",
    template: str,
    script: str,
    settings: dict[str, Any],
) -> None:
    engine, library.script = await engines.start(template), script
    request = ask("x", **settings)
    straight = begin(request)
    outputs = await attempt(engine, sink, straight)
    assert end(outputs).reason is FinishReason.STOP
    for cut in range(len(outputs)):
        lost = begin(request)
        queued = ResponseQueued(Response.of(request, Status.QUEUED))
        run = begin(request, (queued, *write(lost, outputs[:cut])))
        rest = await attempt(engine, sink, run)
        assert shape([*outputs[:cut], *rest[:-1]]) == shape(outputs[:-1])
        assert end(rest).reason is FinishReason.STOP
        usage, expected = end(rest).usage, end(outputs).usage
        assert usage.input_tokens == expected.input_tokens
        assert abs(usage.output_tokens - expected.output_tokens) <= 2  # white space around tags


async def test_calls_are_told_whole_and_counted(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    library.script = f"Let me see.\n{call('Köln')}\n{call('Rom')}\n"
    engine = await engines.start(CALLING_TEMPLATE)
    outputs = await attempt(engine, sink, begin(ask("x", tooling=Tooling((WEATHER,)))))
    assert text(outputs) == "Let me see."
    assert calls(outputs) == ['{"city": "Köln"}', '{"city": "Rom"}']
    assert end(outputs).usage.output_tokens == len(library.tokens(library.script, special=True))
    assert "grammar" not in library.requests[-1]
    one = await attempt(engine, sink, begin(ask("x", tooling=Tooling((WEATHER,), parallel=False))))
    assert calls(one) == ['{"city": "Köln"}']
    none = await attempt(engine, sink, begin(ask("x", tooling=Tooling((WEATHER,), "none"))))
    assert text(none) == library.script


async def test_a_template_without_calls_refuses_tools_by_name(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, tooling = await engines.start(), Tooling((WEATHER,))
    result = Message(Role.TOOL, "rain", call_id="call_1")
    for request in (ask("x", tooling=tooling), ask("x", result)):
        error = end(await attempt(engine, sink, begin(request))).error
        assert isinstance(error, UnsupportedParameter)
        assert error.param == "tools"
    declined = await attempt(engine, sink, begin(ask("x", tooling=Tooling((WEATHER,), "none"))))
    assert text(declined) == library.script


async def test_a_forced_call_and_a_schema_become_a_grammar(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script = await engines.start(CALLING_TEMPLATE), call("Köln")
    forced, person = Tooling((WEATHER,), "required"), OutputFormat(PERSON)
    await attempt(engine, sink, begin(ask("x", tooling=forced)))
    assert "answer: calls\n" in library.requests[-1]["grammar"]
    await attempt(engine, sink, begin(ask("x", tooling=Tooling((WEATHER,)), output_format=person)))
    assert "answer: calls | json\n" in library.requests[-1]["grammar"]
    library.script = '{"name": "Ada"}'
    await attempt(engine, sink, begin(ask("x", output_format=person)))
    assert "answer: json\n" in library.requests[-1]["grammar"]
    library.script = "{}"
    await attempt(engine, sink, begin(ask("x", output_format=OutputFormat())))
    assert '"type": "object"' in library.requests[-1]["grammar"]


async def test_a_pattern_becomes_a_grammar_that_the_answer_is_held_to(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, wanted = await engines.start(CALLING_TEMPLATE), OutputFormat(pattern="[0-9]+/[0-9]+")
    library.script = "12/7"
    assert text(await attempt(engine, sink, begin(ask("x", output_format=wanted)))) == "12/7"
    assert "answer: pattern\npattern: /[0-9]+\\/[0-9]+/\n" in library.requests[-1]["grammar"]
    await attempt(engine, sink, begin(ask("x", tooling=Tooling((WEATHER,)), output_format=wanted)))
    assert "answer: calls | pattern\n" in library.requests[-1]["grammar"]
    library.script = "twelve"
    error = end(await attempt(engine, sink, begin(ask("x", output_format=wanted)))).error
    assert isinstance(error, GenerationFailed)
    assert error.code == "schema_not_followed"
    asked = len(library.requests)
    bad = ask("x", output_format=OutputFormat(pattern="("))
    error = end(await attempt(engine, sink, begin(bad))).error
    assert isinstance(error, InvalidRequest)
    assert (error.code, error.param) == ("invalid_pattern", "response_format")
    assert len(library.requests) == asked


async def test_what_is_chosen_is_asked_for_in_the_librarys_words(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine = await engines.start()

    async def asked(**sampling: Any) -> dict[str, Any]:
        await attempt(engine, sink, begin(ask("x", sampling=Sampling(**sampling))))
        request = library.requests[-1]
        for name in ("prompt", "n_predict", "stream", "return_progress", "cache_prompt"):
            del request[name]
        return request

    usual = {"temperature": 0.0, "top_p": 1.0, "repeat_penalty": 1.0}
    assert await asked() == usual
    rare = RareSampling(
        typical_p=0.9,
        temperature_last=True,
        mirostat_mode=2,
        mirostat_tau=5.0,
        repetition_range=-1,
        dry_multiplier=0.8,
        dry_base=2.0,
        dry_allowed_length=3,
        dry_range=64,
        dry_sequence_breakers=("\n",),
        xtc_probability=0.5,
        xtc_threshold=0.2,
        logit_bias=((5, -100.0),),
    )
    assert await asked(temperature=1.0, top_k=3, seed=-1, rare=rare) == {
        **usual,
        "temperature": 1.0,
        "top_k": 3,
        "seed": 2**32 - 2,
        "typical_p": 0.9,
        "mirostat": 2,
        "mirostat_tau": 5.0,
        "repeat_last_n": -1,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ("\n",),
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "logit_bias": ((5, -100.0),),
    }
    warm = RareSampling(min_temp=0.5, max_temp=2.0, temp_exponent=1.5)
    assert await asked(temperature=1.0, rare=warm) == {
        **usual,
        "temperature": 1.25,
        "dynatemp_range": 0.75,
        "dynatemp_exponent": 1.5,
    }
    greedy = RareSampling(min_temp=0.5, max_temp=2.0)
    assert await asked(temperature=0.0, rare=greedy) == usual
    assert await asked(rare=RareSampling(typical_p=1.0, dry_base=2.0)) == usual


async def test_breakers_that_would_stop_everybodys_answers_are_refused_by_name(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine = await engines.start()

    async def answered(multiplier: float, *breakers: str) -> Finished:
        rare = RareSampling(dry_multiplier=multiplier, dry_sequence_breakers=breakers)
        return end(await attempt(engine, sink, begin(ask("x", sampling=Sampling(rare=rare)))))

    assert (await answered(0.8, *"。é\n")).error is None
    assert (await answered(0.0, "ea")).error is None  # it is off
    asked = len(library.requests)
    error = (await answered(0.8, "\n", "ea")).error
    assert isinstance(error, UnsupportedParameter)
    assert error.param == "dry_sequence_breakers"
    assert "single characters" in error.message
    assert len(library.requests) == asked


async def test_tokens_are_said_with_how_likely_they_were(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script = await engines.start(), "<think>\nhm\n</think>\n\nso"

    async def scores(logprobs: int | None) -> list[TokenScore]:
        outputs = await attempt(engine, sink, begin(ask("x", logprobs=logprobs)))
        assert (thought(outputs), text(outputs)) == ("hm\n", "so")
        return list(scores_of(output for output in outputs if isinstance(output, TextDelta)))

    assert await scores(0) == [TokenScore("s", -0.5), TokenScore("o", -0.5)]
    assert library.requests[-1]["n_probs"] == 1
    first, _ = await scores(3)
    assert first.top == (("s", -0.5), ("\ufffd", -1.0), ("z", -9999.0))
    assert await scores(None) == []
    assert "n_probs" not in library.requests[-1]


async def test_an_answer_that_does_not_follow_its_schema_is_a_failure(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, settings = await engines.start(), {"output_format": OutputFormat(PERSON)}
    library.script = '{"name": 5}'
    error = end(await attempt(engine, sink, begin(ask("x", **settings)))).error
    assert isinstance(error, GenerationFailed)
    assert error.code == "schema_not_followed"
    cut = end(await attempt(engine, sink, begin(ask("x", **settings, max_output_tokens=5))))
    assert cut.reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("cut_off", "is_followed"),
    [
        ('{"name": "Ad', True),
        ('{"name": "Ad\ufffd', True),  # half of a character
        ("<think>\nhm, what n", True),
        ("<think>\nhm\n</think>\n\n{", True),
        ("<thi", True),
        ('{"age": "Ad', False),
        ("<think>\nhm\n</think>\n\nWell", False),
        ("<thought", False),
    ],
)
async def test_an_answer_that_is_cut_off_follows_its_schema_as_far_as_it_goes(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink", cut_off: str, is_followed: bool
) -> None:
    engine, library.script = await engines.start(f"{TEMPLATE}{{# <think> #}}"), f"{cut_off} and so on"
    size = len(library.tokens(cut_off, special=True))
    asked = begin(ask("x", output_format=OutputFormat(PERSON), max_output_tokens=size))
    found = end(await attempt(engine, sink, asked))
    if is_followed:
        assert (found.reason, found.error) == (FinishReason.LENGTH, None)
    else:
        assert isinstance(found.error, GenerationFailed)
        assert found.error.code == "schema_not_followed"


async def test_a_schema_that_cannot_be_followed_never_reaches_the_library(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine = await engines.start(CALLING_TEMPLATE)
    schema = {"type": "array", "minItems": 10**9}
    in_format = ask("x", output_format=OutputFormat(schema))
    in_tool = ask("x", tooling=Tooling((Tool("f", parameters=schema),), "required"))
    for request, param in ((in_format, "response_format"), (in_tool, "tools")):
        error = end(await attempt(engine, sink, begin(request))).error
        assert isinstance(error, InvalidRequest)
        assert (error.code, error.param) == ("invalid_json_schema", param)
    assert library.requests == []


async def test_a_model_that_begins_another_answer_cannot_go_on_with_the_first(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script = await engines.start(), '{"name": "Eve"}'
    settings = Settings(output_format=OutputFormat(PERSON))
    job = Job("r", (Message(Role.USER, "x"),), settings, '{"name": "A')
    outputs = await attempt(engine, sink, job)
    error = end(outputs).error
    assert text(outputs) == ""
    assert isinstance(error, GenerationFailed)
    assert error.code == "answer_interrupted"


async def test_what_follows_a_schema_has_the_same_seed_in_all_attempts(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script = await engines.start(), "{}"
    for request in (ask("x"), *[ask("x", output_format=OutputFormat())] * 2):
        await attempt(engine, sink, begin(request))
    free, first, second = (request.get("seed") for request in library.requests)
    assert free is None
    assert first is not None
    assert first == second
    await attempt(engine, sink, begin(ask("x", output_format=OutputFormat(), sampling=Sampling(seed=7))))
    assert library.requests[-1]["seed"] == 7


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


async def test_two_attempts_at_one_response_are_two_jobs(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script, library.pause_s = await engines.start(), "x" * 1000, 0.005
    lost, taken_over = begin(ask("x")), begin(ask("x"))
    engine.submit(lost)
    engine.submit(taken_over)
    engine.cancel(lost)
    steps = await sink.until_ended(lost)
    ends = [(job, output.reason) for step in steps for job, output in step if isinstance(output, Finished)]
    assert ends == [(lost, FinishReason.CANCELLED)]
    await sink.step()
    engine.cancel(taken_over)
    outputs = await sink.outputs(taken_over)
    assert end(outputs).reason is FinishReason.CANCELLED
    engine.cancel(lost)  # nobody knows it any more


async def test_a_cancel_before_the_engine_began_counts_what_was_said(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    engine, library.script, library.pause_s = await engines.start(), "x" * 1000, 0.005
    busy: list[Job] = [begin(ask("x")) for _ in range(engine.capabilities.slots)]
    for one in busy:
        engine.submit(one)
    waiting = Job("r", (Message(Role.USER, "x"),), Settings(), "so i", "hm")
    engine.submit(waiting)
    for one in (waiting, *busy):
        engine.cancel(one)
    steps = await sink.until_ended(waiting, *busy)
    (last,) = [output for step in steps for one, output in step if one is waiting]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.CANCELLED
    assert (last.usage.output_tokens, last.usage.reasoning_tokens) == (6, 2)


async def test_a_fault_of_the_library_ends_the_job_and_no_other(
    engines: Engines,
    library: FakeLlamaCpp,
    sink: "Sink",
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = await engines.start()
    stopped = []

    def nonsense(request: object, callback: Callable[[Any], bool]) -> None:
        stopped.append(callback({"choices": []}))

    def refusal(request: object, callback: Callable[[Any], bool]) -> None:
        callback({"error": {"message": "out of slots"}})

    def silence(request: object, callback: object) -> None: ...

    def crash(request: object, callback: object) -> None:
        raise RuntimeError("bad alloc")

    for fault in (nonsense, refusal, silence, crash):
        with monkeypatch.context() as patch:
            patch.setattr(library, "handle_completions", fault)
            (last,) = await attempt(engine, sink, begin(ask("x")))
        assert isinstance(last, Finished)
        assert last.reason is FinishReason.ERROR
        assert isinstance(last.error, GenerationFailed)
    assert stopped == [True]
    assert [record.name for record in caplog.records].count("internal.generator.llamacpp") == 2
    assert text(await attempt(engine, sink, begin(ask("x")))) == library.script


# ── the real one ─────────────────────────────────────────────────────────────────────────────────


async def test_an_engine_may_be_started_again_and_gives_the_model_back_meanwhile(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink"
) -> None:
    gone: list[int] = []
    engine = await engines.start()
    for number in range(3):
        library.script = f"answer {number}"
        outputs = await attempt(engine, sink, begin(ask("and now?")))
        assert text(outputs) == f"answer {number}"
        weakref.finalize(engine._loaded(), gone.append, number)
        with without_collector():  # as in a server, whose collector never looks at what is old
            await engine.stop()
            await engine.stop()  # which is harmless
            assert gone == list(range(number + 1))
        with pytest.raises(GenerationFailed, match="not loaded"):
            engine.complete({}, lambda _: True)
        await engine.start(sink, lambda _: None)


async def test_a_load_that_failed_may_be_tried_again(
    engines: Engines, library: FakeLlamaCpp, sink: "Sink", tmp_path: Path
) -> None:
    engine = await engines.start()
    await engine.stop()
    (tmp_path / "model.gguf").unlink()
    with pytest.raises(GenerationFailed, match="no model file"):
        await engine.start(sink, lambda _: None)
    await engine.stop()
    (tmp_path / "model.gguf").write_bytes(b"weights")
    await engine.start(sink, lambda _: None)
    library.script = "so it is"
    assert text(await attempt(engine, sink, begin(ask("is it?")))) == "so it is"


@pytest.mark.real_model
async def test_the_real_model_goes_on_in_the_middle_of_a_sentence(sink: "Sink", tmp_path: Path) -> None:
    engines = Engines(sink, tmp_path)
    engine = await engines.start_with(_options(None, None, 512))
    try:
        request = ask("Tell me about the city of Paris.", max_output_tokens=40)
        outputs = await attempt(engine, sink, begin(request))
        whole, usage = text(outputs), end(outputs).usage
        assert end(outputs).reason is FinishReason.LENGTH
        assert usage.output_tokens == 40
        for tokens in (1, 13, 27, 40):
            said = text(outputs[:tokens])
            run = Job("r", request.messages, request.settings, said)
            rest = await attempt(engine, sink, run)
            # Where two tokens are about as likely, a prompt of another length may tip the scales.
            assert text(rest)[:12] == whole[len(said) :][:12]
            assert end(rest).reason is FinishReason.LENGTH
            assert end(rest).usage.input_tokens == usage.input_tokens
            assert end(rest).usage.output_tokens == 40
    finally:
        await engines.stop()


@pytest.mark.real_model
async def test_the_real_model_takes_what_is_chosen(sink: "Sink", tmp_path: Path) -> None:
    engines = Engines(sink, tmp_path)
    engine = await engines.start_with(_options(None, None, 768))

    async def answer(*messages: Message | str, **settings: Any) -> list[Output]:
        outputs = await attempt(engine, sink, begin(ask(*messages, **settings)))
        assert end(outputs).error is None
        return outputs

    async def begins(**sampling: Any) -> str:
        story = await answer("Tell me a story.", max_output_tokens=8, sampling=Sampling(**sampling))
        return text(story)

    try:
        usual, lucky = await begins(), await begins(temperature=1.0, seed=1)
        assert await begins(temperature=1.0, seed=1) == lucky
        assert await begins(temperature=1.0, seed=2) != lucky
        for only_the_best in ({"top_k": 1}, {"min_p": 1.0}):
            assert (await begins(temperature=2.0, seed=2, **only_the_best))[:12] == usual[:12]
        for penalty in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
            assert await begins(**{penalty: 2.0}) != usual

        (the,) = engine.tokenize([Piece("The", special=False)])
        assert usual.startswith("The ")
        assert not (await begins(rare=RareSampling(logit_bias=((the, -100.0),)))).startswith("The ")
        wild = {"temperature": 2.0, "seed": 3}
        for rare in (
            RareSampling(typical_p=0.01),
            RareSampling(mirostat_mode=2, mirostat_tau=0.1),
            RareSampling(min_temp=0.01, max_temp=0.02),
            RareSampling(xtc_probability=1.0, xtc_threshold=0.01),
        ):
            assert await begins(**wild, rare=rare) != await begins(**wild)
        echo = ask("Say: " + "so it is, " * 12, max_output_tokens=24)
        dry = replace(echo.settings, sampling=Sampling(rare=RareSampling(dry_multiplier=5.0)))
        repeats = text(await attempt(engine, sink, begin(echo)))
        assert text(await attempt(engine, sink, begin(replace(echo, settings=dry)))) != repeats

        for logprobs in (0, 3):
            outputs = await answer("Tell me a story.", max_output_tokens=8, logprobs=logprobs)
            scores = scores_of(output for output in outputs if isinstance(output, TextDelta))
            assert "".join(score.text for score in scores) == text(outputs)
            assert all(score.logprob < 0 and len(score.top) == logprobs for score in scores)
            # At temperature 0 the likeliest is said.
            assert all(score.top[0] == (score.text, score.logprob) for score in scores if logprobs)

        number = OutputFormat(pattern=r"^\d{3}/\d{4}$")
        told = text(await answer("What is your phone number?", output_format=number))
        assert re.fullmatch(r"\d{3}/\d{4}", told)

        asked = "Tell me about the city of Paris."
        stopped = await answer(asked, stop=("city", "capital"), max_output_tokens=40)
        assert "Paris" in text(stopped)
        assert "city" not in text(stopped)
        assert end(stopped).reason is FinishReason.STOP

        short = {**PERSON, "properties": {"name": {"type": "string", "maxLength": 12}}}
        person = ask("Give me a person as JSON.", output_format=OutputFormat(short))
        outputs = await attempt(engine, sink, begin(person))
        assert set(json.loads(text(outputs))) == {"name"}
        middle = Job(person.response_id, person.messages, person.settings, text(outputs)[:6])
        assert text(await attempt(engine, sink, middle)) == text(outputs)[6:]

        question = "What is the weather in Paris?"
        called = await answer(question, tooling=Tooling((WEATHER, Tool("clock")), function="weather"))
        (the_call,) = [output for output in called if isinstance(output, ToolCall)][:1]
        assert the_call.name == "weather"
        assert set(json.loads(the_call.arguments)) <= {"city"}
        result = Message(Role.TOOL, '{"celsius": 21}', call_id=the_call.id)
        said = await answer(
            question, Message(Role.ASSISTANT, "", (the_call,)), result, tooling=Tooling((WEATHER,))
        )
        assert "21" in text(said)
    finally:
        await engines.stop()
