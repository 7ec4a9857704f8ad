"""Settings of models elsewhere, and what is said of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cmd.wire import engines
from cmd.wire.options import chat_rules
from internal.biz.errors import InvalidRequest
from internal.biz.models import Feature
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.preferences import Preferences
from internal.biz.sampling import RARE_NAMES
from internal.conf.load import ConfigError, effective, load
from internal.conf.settings import OpenAIModel, Settings
from internal.conf.upstream import Ability, OpenAIOptions
from internal.generator.openai.engine import OpenAIGenerator
from internal.generator.openai.options import OpenAIOptions as EngineOptions
from internal.generator.own.engine import OwnGenerator
from internal.metrics.instruments import Instruments

ROOT = Path(__file__).parents[2]
KEY = "sk-do-not-tell-4711"
Read = Callable[..., Settings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_it(**options: Any) -> Settings:
        path = tmp_path / "config.yaml"
        model = {"name": "m", "generator": "openai", "options": options}
        path.write_text(yaml.safe_dump({"models": [model]}), encoding="utf-8")
        return load(path, {})

    return read_it


def model(settings: Settings) -> OpenAIModel:
    found = settings.models[0]
    assert isinstance(found, OpenAIModel)
    return found


def engine_options(settings: Settings) -> EngineOptions:
    engine = engines.generator(model(settings), Instruments(), {})
    assert isinstance(engine, OpenAIGenerator)
    found = vars(engine)["_options"]
    assert isinstance(found, EngineOptions)
    return found


def test_an_address_is_enough(read: Read) -> None:
    options = engine_options(read(base_url="http://127.0.0.1:11434/v1/"))
    (node,) = options.nodes
    assert (options.model, node.base_url, node.api_key, node.slots) == (
        "m",
        "http://127.0.0.1:11434/v1",
        "",
        8,
    )
    assert options == EngineOptions("m", options.nodes), "the engine and its settings have other defaults"


def test_nodes_may_differ(read: Read) -> None:
    nodes = [{"base_url": "http://a/v1", "slots": 32}, {"base_url": "https://b/v1", "api_key": "other"}]
    settings = read(nodes=nodes, slots=4, api_key=KEY, model="there", connect_timeout="1s")
    options = engine_options(settings)
    assert [(node.api_key, node.slots) for node in options.nodes] == [(KEY, 32), ("other", 4)]
    assert (options.model, options.connect_timeout_s) == ("there", 1.0)
    engine = engines.generator(model(settings), Instruments(), {})
    assert engine.capabilities.slots == 36


def test_keys_come_from_the_environment(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    options = engine_options(read(base_url="http://a", api_key="${A_KEY}", headers={"X-Key": "${A_KEY}"}))
    assert (options.nodes[0].api_key, options.headers) == (KEY, {"X-Key": KEY})
    assert KEY not in repr(options)


@pytest.mark.parametrize(("value", "says"), [(None, "is not set"), ("", "is not set"), ("a\nb", "cannot be")])
def test_a_key_that_is_not_there_is_named_where_it_is_used(
    read: Read, monkeypatch: pytest.MonkeyPatch, value: str | None, says: str
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    settings = read(base_url="http://a", api_key="${A_KEY}")
    with pytest.raises(InvalidRequest, match=f"the model m: .*A_KEY.*{says}"):
        engines.generator(model(settings), Instruments(), {})
    assert chat_rules(settings).models == ("m",), "who does not ask it needs no key"


def test_what_it_can_do_is_for_the_operator_to_say(read: Read) -> None:
    def features(**options: Any) -> frozenset[Feature]:
        return chat_rules(read(base_url="http://a", **options)).features["m"]

    usual = frozenset(Feature) - {Feature.IMAGES, Feature.PATTERN, Feature.LOGPROBS}
    assert features() == usual
    assert features(images=True) == usual | {Feature.IMAGES}
    assert features(rename={"pattern": "guided_regex"}) == usual | {Feature.PATTERN}
    assert features(lacks=["tools", "top_k", "dry_base"]) == usual - {
        Feature.TOOLS,
        Feature.TOP_K,
        Feature.DRY_BASE,
    }
    assert features(lacks=["rare_sampling"]) == usual - set(map(Feature, RARE_NAMES))
    assert set(get_args(Ability)) == {feature.value for feature in usual}


def test_the_file_that_comes_with_sluice_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", KEY)
    settings = load(ROOT / "configs" / "upstream.yaml", {})
    made = [engines.generator(model, Instruments(), {}) for model in settings.models]
    assert all(isinstance(engine, OpenAIGenerator) for engine in made)
    assert [engine.capabilities.slots for engine in made] == [4, 48, 16]
    assert KEY not in effective(settings)
    assert "${DEEPSEEK_API_KEY}" in effective(settings)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, ["set base_url, or nodes"]),
        ({"base_url": "http://a", "nodes": [{"base_url": "http://b"}]}, ["set base_url, or nodes"]),
        (
            {"nodes": [{"base_url": "http://a"}, {"base_url": "http://a/"}]},
            ["two nodes are the same: http://a"],
        ),
        ({"base_url": "localhost:8000"}, ["models.0.options.base_url", "http://host:port/v1"]),
        ({"base_url": "ftp://a/v1"}, ["models.0.options.base_url", "http://host:port/v1"]),
        ({"base_url": "http://a:b/v1"}, ["models.0.options.base_url", "http://host:port/v1"]),
        ({"base_url": "http://:8000"}, ["models.0.options.base_url", "http://host:port/v1"]),
        ({"base_url": "http://a/v1?x=1"}, ["models.0.options.base_url", "nothing stands behind the path"]),
        ({"base_url": "http://a", "api_key": "$A_KEY"}, ["models.0.options.api_key", "${NAME}"]),
        ({"base_url": "http://a", "timeout": 0}, ["models.0.options.timeout", "greater than 0"]),
        ({"base_url": "http://a", "lacks": ["voice"]}, ["models.0.options.lacks.0", "voice"]),
        ({"base_url": "http://a", "rename": {"tokens": "x"}}, ["tokens is no parameter", "max_tokens"]),
        ({"base_url": "http://a", "extra_body": {"stream": False}}, ["extra_body must not have stream"]),
        ({"base_url": "http://a", "continuation": "maybe"}, ["models.0.options.continuation", "vllm"]),
        ({"base_url": "http://a", "braker": {}}, ["unknown key models.0.options.braker", "breaker"]),
        ({"base_url": "http://a", "breaker": {"fails": 1}}, ["models.0.options.breaker.fails", "failures"]),
        (
            {"nodes": [{"base_uri": "http://a"}]},
            ["models.0.options.nodes.0.base_uri", "did you mean base_url"],
        ),
    ],
)
def test_nonsense_is_named(read: Read, options: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        read(**options)
    for words in says:
        assert words in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "http://a", "api_key": f"{KEY}\n{KEY}"},
        {"base_url": "http://a", "api_key": [KEY]},
        {"base_url": "http://a", "api_key": {"env": KEY}},
        {"base_url": "http://a", "headers": KEY},
        {"base_url": "http://a", "headers": {"Authorization": [KEY]}},
        {"base_url": "http://a", "headers": {"No Name": KEY}},
        {"base_url": f"http://user:{KEY}@a/v1"},
        {"base_url": f"http://a/v1?key={KEY}"},
        {"nodes": {"base_url": "http://a", "api_key": KEY}},
        {"nodes": [{"api_key": KEY}]},
        {"nodes": [[KEY]]},
    ],
)
def test_no_complaint_tells_a_key(read: Read, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        read(**options)
    assert KEY not in str(error.value)


def test_no_key_is_shown(read: Read) -> None:
    nodes = [{"base_url": "http://a", "api_key": KEY}]
    settings = read(nodes=nodes, api_key=KEY, headers={"X-Key": KEY})
    assert KEY not in effective(settings) + repr(settings)
    assert OpenAIOptions(base_url="http://a").api_key.get_secret_value() == ""


# ── users' own ───────────────────────────────────────────────────────────────────────────────────


class NoUpstreams:
    """Implements what OwnUpstreams needs of a storage, and of a cipher."""

    async def preferences(self, user_id: str) -> Preferences:
        return Preferences()

    def decrypt(self, text: str) -> str | None:
        return None


OWN: dict[str, Any] = {"name": "mine", "generator": "own"}
SMALL: dict[str, Any] = {"name": "small", "generator": "llamacpp"}


def own_settings(tmp_path: Path, **options: Any) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"models": [SMALL, {**OWN, "options": options}]}), encoding="utf-8")
    return load(path, {})


def own_engine(settings: Settings) -> OwnGenerator:
    upstreams = OwnUpstreams(NoUpstreams(), NoUpstreams())
    engine = engines.generator(settings.models[1], Instruments(), {}, upstreams)
    assert isinstance(engine, OwnGenerator)
    return engine


def test_users_upstreams_are_public_ones_unless_it_is_said(tmp_path: Path) -> None:
    engine = own_engine(own_settings(tmp_path))
    assert (vars(engine)["_only_public"], engine.capabilities.slots, vars(engine)["_user_slots"]) == (
        True,
        64,
        8,
    )
    usual = EngineOptions("", ())
    given = vars(engine)["_options"]
    assert replace(given, images=False, bounds=usual.bounds, is_discreet=False) == usual, (
        "the engine and its settings have other defaults"
    )
    free = own_engine(own_settings(tmp_path, addresses="any", slots=3, user_slots=2, timeout="1m"))
    assert (vars(free)["_only_public"], free.capabilities.slots, vars(free)["_user_slots"]) == (False, 3, 2)
    assert vars(free)["_options"].timeout_s == 60.0


def test_users_upstreams_can_what_there_are_words_for_and_find_no_titles(tmp_path: Path) -> None:
    rules = chat_rules(own_settings(tmp_path))
    assert rules.features["mine"] == frozenset(Feature) - {Feature.PATTERN, Feature.LOGPROBS}
    assert (rules.own, rules.titling) == ("mine", ("small",))


def test_without_such_a_model_nobody_s_upstream_is_asked(read: Read) -> None:
    assert chat_rules(read(base_url="http://a")).own is None
