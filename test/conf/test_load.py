"""The configuration: defaults, a file, the environment, and complaints that name the culprit."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from internal.conf.load import ConfigError, effective, load
from internal.conf.settings import (
    EchoModel,
    LlamaCppModel,
    Queue,
    SecretUrl,
    Settings,
    parse_address,
)
from internal.conf.values import parse_duration

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_it(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_it


def complaint(path: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, environ)
    return str(error.value)


def dig(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


# ── values ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.http.addr", "0.0.0.0:8080"),
        ("server.http.timeout", 5.0),
        ("server.processes", 1),
        ("server.allowed_origins", []),
        ("server.trusted_proxies", []),
        ("session.max_message_bytes", 1 << 20),
        ("session.max_connections", 0),
        ("session.ping_interval", 27.0),
        ("session.pong_timeout", 30.0),
        ("session.write_timeout", 5.0),
        ("session.on_disconnect", "cancel"),
        ("session.grace", 10.0),
        ("session.max_in_flight", 8),
        ("queue.driver", "memory"),
        ("queue.prefix", "sluice"),
        ("queue.lease", 15.0),
        ("queue.retain", 600.0),
        ("queue.max_pending", 1024),
        ("queue.max_age", 600.0),
        ("queue.max_attempts", 3),
        ("storage.keep_conversations", 500),
        ("storage.keep_responses", 30 * 86400.0),
        ("storage.keep_guests", 30 * 86400.0),
        ("storage.titles", True),
        ("limits.user.requests", 0),
        ("limits.user.tokens", 0),
        ("limits.user.in_flight", 0),
        ("limits.address.requests", 0),
        ("limits.address.tokens", 0),
        ("limits.login_attempts", 10),
        ("storage.url", SecretUrl("sqlite:///data/sluice.db")),
        ("auth.required", False),
        ("auth.registration", True),
        ("auth.jwt_secret", SecretStr("")),
        ("auth.operator_key", SecretStr("")),
        ("auth.secret_file", "data/secret.key"),
        ("auth.access_ttl", 3600.0),
        ("auth.refresh_ttl", 259200.0),
        ("shutdown.timeout", 30.0),
        ("log.level", "info"),
        ("log.format", "text"),
    ],
)
def test_an_empty_file_gives_the_defaults(write: Write, key: str, value: object) -> None:
    assert dig(load(write(""), {}), key) == value


def test_what_was_said_is_kept_in_a_file_unless_somebody_says_otherwise(write: Write) -> None:
    assert stored_at(write("")) == "sqlite:///data/sluice.db"
    assert stored_at(write("storage: {url: ''}")) == ""


def stored_at(path: Path, **environ: str) -> str:
    return load(path, environ).storage.url.get_secret_value()


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("sqlite+aiosqlite:////var/lib/x.db", "sqlite:////var/lib/x.db"),
        ("postgres://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?ssl=require"),
        ("postgresql://h:5432/d", "postgresql+asyncpg://h:5432/d"),
        ("postgresql+asyncpg:///d?host=/run/postgresql", "postgresql+asyncpg:///d?host=/run/postgresql"),
        ("mysql://h/d", "mysql+aiomysql://h/d"),
        ("mysql+asyncmy://u@h/d", "mysql+asyncmy://u@h/d"),
    ],
)
def test_a_storage_is_reached_with_the_driver_that_is_known_here(write: Write, url: str, read: str) -> None:
    assert stored_at(write(""), SLUICE_STORAGE__URL=url) == read


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite://", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://x.db"]
)
def test_a_database_in_memory_is_refused_as_each_connection_would_have_its_own(
    write: Write, url: str
) -> None:
    told = complaint(write(f"storage: {{url: '{url}'}}"))
    assert "storage.url" in told
    assert "each connection" in told


def test_servers_and_workers_that_share_no_storage_are_refused(write: Write) -> None:
    told = complaint(write("queue: {driver: redis}\nstorage: {url: ''}"))
    assert "storage.url: servers and workers have to share what was said; set storage.url" in told


def test_the_default_models_are_the_bundled_one_and_echo(write: Write) -> None:
    first, second = load(write(""), {}).models
    assert isinstance(first, LlamaCppModel)
    assert (first.name, first.options.slots, first.options.context) == ("smollm2", 8, 2048)
    assert isinstance(second, EchoModel)
    assert (second.name, second.options.chunks, second.options.interval) == ("echo", 5, 0.4)
    assert second.options.thinking == 0


def test_the_file_that_comes_with_sluice_says_the_defaults() -> None:
    path = Path(__file__).parents[2] / "configs" / "config.yaml"
    assert load(path, {}) == Settings()


def test_the_file_for_redis_says_the_defaults_too() -> None:
    path = Path(__file__).parents[2] / "configs" / "redis.yaml"
    settings = load(path, {})
    assert settings == Settings(queue=Queue(driver="redis"))
    assert settings.queue.url.get_secret_value() == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize("name", ["config.yaml", "redis.yaml"])
def test_the_limits_that_come_with_sluice_can_be_switched_on(write: Write, name: str) -> None:
    text = (Path(__file__).parents[2] / "configs" / name).read_text(encoding="utf-8")
    text, count = re.subn(
        r"(?m)^( *)# (limits:|  user:|  address:|  login_attempts:|trusted_proxies:)", r"\1\2", text
    )
    assert count == 5
    settings = load(write(text), {})
    assert settings.limits.user.requests == 60
    assert settings.limits.user.tokens > settings.limits.user.requests
    assert settings.limits.address.requests > settings.limits.user.requests
    assert settings.server.trusted_proxies == ["10.0.0.0/8"]


def test_the_password_of_a_redis_is_masked(write: Write) -> None:
    settings = load(write("queue: {driver: redis, url: 'redis://:hush@redis:6379/0'}"), {})
    assert "hush" not in effective(settings)
    assert "hush" not in repr(settings)


def test_a_file_overrides_defaults(write: Write) -> None:
    settings = load(
        write(
            """
            server: {http: {addr: "127.0.0.1:9000"}}
            session: {grace: 0, max_in_flight: 2}
            models:
              - {name: fast, generator: echo, options: {interval: 0, chunks: 3, thinking: 2}}
            """
        ),
        {},
    )
    assert settings.server.http.addr == "127.0.0.1:9000"
    assert settings.server.http.timeout == 5.0
    assert settings.session.grace == 0.0
    (model,) = settings.models
    assert isinstance(model, EchoModel)
    options = model.options
    assert (model.name, options.interval, options.chunks, options.thinking) == ("fast", 0.0, 3, 2)


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("SLUICE_SERVER__HTTP__ADDR", "127.0.0.1:18080", "server.http.addr", "127.0.0.1:18080"),
        ("SLUICE_SERVER__HTTP__ADDR", ":8081", "server.http.addr", ":8081"),
        ("SLUICE_SERVER__HTTP__ADDR", "[::1]:8081", "server.http.addr", "[::1]:8081"),
        ("SLUICE_SESSION__GRACE", "1.5s", "session.grace", 1.5),
        ("SLUICE_SESSION__GRACE", "0", "session.grace", 0.0),
        ("SLUICE_SESSION__MAX_IN_FLIGHT", "3", "session.max_in_flight", 3),
        (
            "SLUICE_SERVER__ALLOWED_ORIGINS",
            '["https://a.example"]',
            "server.allowed_origins",
            ["https://a.example"],
        ),
        (
            "SLUICE_SERVER__TRUSTED_PROXIES",
            '[10.0.0.0/8, "::1"]',
            "server.trusted_proxies",
            ["10.0.0.0/8", "::1"],
        ),
        ("SLUICE_LIMITS__USER__REQUESTS", "60", "limits.user.requests", 60),
        ("SLUICE_LIMITS__LOGIN_ATTEMPTS", "3", "limits.login_attempts", 3),
        ("SLUICE_LOG__FORMAT", "json", "log.format", "json"),
        ("sluice_log__format".upper(), "json", "log.format", "json"),
    ],
)
def test_the_environment_overrides_the_file(
    write: Write, variable: str, text: str, key: str, value: object
) -> None:
    path = write("session: {grace: 9s, max_in_flight: 9}\nlog: {level: debug}\n")
    settings = load(path, {variable: text, "PATH": "/bin", "SLUICEGATE": "x"})
    assert dig(settings, key) == value
    assert settings.log.level == "debug"


def test_the_environment_can_set_the_models(write: Write) -> None:
    environ = {"SLUICE_MODELS": "[{name: e, generator: echo, options: {interval: 0}}]"}
    (model,) = load(write(""), environ).models
    assert isinstance(model, EchoModel)
    assert model.options.interval == 0.0


@pytest.mark.parametrize(
    "begin", ["123456", "1e5", "yes", "null", "@x", "a: b", "a #b", "*x", "[x", "0x10", '"', "\udcff"]
)
def test_a_secret_from_the_environment_is_taken_as_it_stands(write: Write, begin: str) -> None:
    secret = begin + "0" * 32
    environ = {"SLUICE_AUTH__JWT_SECRET": secret, "SLUICE_AUTH__OPERATOR_KEY": secret}
    settings = load(write(""), environ)
    assert settings.auth.jwt_secret.get_secret_value() == secret
    assert settings.auth.operator_key.get_secret_value() == secret


def test_a_model_may_be_unloaded_after_a_time_in_which_nobody_asks(write: Write) -> None:
    text = (
        "models: [{name: a, generator: llamacpp}, {name: e, generator: echo}, {name: b, generator: llamacpp, "
    )
    settings = load(write(text + "options: {idle_unload: 10m}}]"), {})
    assert [model.idle_unload_s for model in settings.models] == [0.0, 0.0, 600.0]
    assert not any(model.may_be_lost for model in settings.models)
    told = complaint(write("models: [{name: e, generator: echo, options: {idle_unload: 10m}}]"))
    assert "unknown key models.0.options.idle_unload" in told


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("400ms", 0.4), ("1.5s", 1.5), ("10m", 600), ("72h", 259200), ("7d", 604800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "5", "1,5s", "-1s", "s", "1 s", "1S", "1s2ms", ".5s", "1.s", "inf", "1sec", 5, 1.5, None, [], True],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8080", ("0.0.0.0", 8080)),
        ("localhost:0", ("localhost", 0)),
        (":80", ("0.0.0.0", 80)),
        ("[::1]:8080", ("::1", 8080)),
        ("[::]:65535", ("::", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "8080", "localhost", "localhost:", "localhost:http", "h:65536", "h:-1", "h:1.5"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        parse_address(text)


# ── complaints ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sever: {}", ["unknown key sever", "did you mean server?"]),
        ("session: {graze: 1s}", ["unknown key session.graze", "did you mean grace?"]),
        ("session: {nonsense: 1}", ["unknown key session.nonsense", "max_in_flight"]),
        ("server: {http: {adr: x}}", ["unknown key server.http.adr", "did you mean addr?"]),
        (
            "models: [{name: e, generator: echo, options: {intervall: 1s}}]",
            ["unknown key models.0.options.intervall", "did you mean interval?"],
        ),
        (
            "models: [{name: e, generator: echo, opts: {}}]",
            ["unknown key models.0.opts", "did you mean options?"],
        ),
        ("echo: {interval: 1s}", ["unknown key echo"]),
        ("server: {llamacpp: 1}", ["unknown key server.llamacpp"]),
        ("session: {grace: 10}", ["session.grace", "10 is not a duration", "400ms"]),
        ("session: {grace: soon}", ["session.grace", "'soon' is not a duration"]),
        ("session: {max_in_flight: 0}", ["session.max_in_flight", "greater than or equal to 1", "0"]),
        ("session: {max_in_flight: many}", ["session.max_in_flight", "integer", "many"]),
        ("session: {on_disconnect: hang}", ["session.on_disconnect", "'cancel' or 'continue'", "hang"]),
        ("server: {http: {addr: nowhere}}", ["server.http.addr", "'nowhere' is not an address"]),
        ("server: {http: {addr: 8080}}", ["server.http.addr", "is not an address"]),
        ("server: {processes: 0}", ["server.processes", "greater than or equal to 1"]),
        ("server: {processes: 2}", ["server.processes: each", "set queue.driver: redis"]),
        (
            "server: {trusted_proxies: [proxy.local]}",
            ["server.trusted_proxies.0", "'proxy.local' is not an address or a network", "10.0.0.0/8"],
        ),
        (
            "server: {trusted_proxies: [10.0.0.1/8]}",
            ["server.trusted_proxies.0", "'10.0.0.1/8'", "write 10.0.0.1 or 10.0.0.0/8"],
        ),
        (
            "server: {trusted_proxies: [10]}",
            ["server.trusted_proxies.0", "10 is not an address or a network"],
        ),
        ("server: {trusted_proxies: 10.0.0.1}", ["server.trusted_proxies", "list"]),
        ("limits: {user: {requests: -1}}", ["limits.user.requests", "greater than or equal to 0"]),
        ("limits: {address: {in_flight: 1}}", ["unknown key limits.address.in_flight", "requests, tokens"]),
        ("limits: {login_attempts: 0}", ["limits.login_attempts", "greater than or equal to 1"]),
        ("queue: {url: 'http://localhost'}", ["queue.url", "redis://"]),
        ("queue: {prefix: 'a b'}", ["queue.prefix", "pattern", "a b"]),
        ("queue: {lease: 999ms}", ["queue.lease", "greater than or equal to 1", "999ms"]),
        ("queue: {driver: kafka}", ["queue.driver", "memory", "kafka"]),
        ("storage: {url: 'oracle://h/d'}", ["storage.url", "sqlite:///path", "untested"]),
        ("storage: {url: 'postgresql://h'}", ["storage.url", "host:port/database"]),
        ("storage: {url: 'postgresql://h:five/d'}", ["storage.url", "host:port/database"]),
        ("storage: {keep_conversations: -1}", ["storage.keep_conversations", "0"]),
        ("auth: {required: true}", ["auth.jwt_secret", "make one with"]),
        ("auth: {required: true, jwt_secret: ''}", ["auth.jwt_secret", "make one with"]),
        ("auth: {required: perhaps}", ["auth.required", "perhaps"]),
        ("auth: {jwt_secret: too-short}", ["auth.jwt_secret", "32 bytes", "make one with"]),
        ("auth: {operator_key: too-short}", ["auth.operator_key", "32 bytes", "make one with"]),
        ("auth: {secret_file: ''}", ["auth.secret_file"]),
        ("auth: {access_ttl: 0}", ["auth.access_ttl", "greater than or equal to 1"]),
        ("auth: {access_ttl: 2h, refresh_ttl: 1h}", ["auth: access_ttl must not be longer"]),
        ("auth: {required: true, jwt_secret: %s}\nstorage: {url: ''}" % ("s" * 32), ["storage.url", "users"]),
        ("models: [{name: a, generator: own}]\nstorage: {url: ''}", ["storage.url", "the model a", "users"]),
        (
            "models: [{name: a, generator: own}, {name: b, generator: own}]",
            ["one upstream of their own", "a, b"],
        ),
        ("models: [{name: a, generator: own, options: {addresses: local}}]", ["addresses", "public", "any"]),
        (
            "models: [{name: a, generator: own, options: {base_url: 'http://a'}}]",
            ["unknown key models.0.options.base_url", "addresses"],
        ),
        ("models: []", ["models", "at least 1"]),
        ("models: [{name: a, generator: magic}]", ["models.0", "magic", "echo"]),
        ("models: [{name: a}]", ["models.0", "generator"]),
        ("models: [{generator: echo}]", ["models.0.name", "required"]),
        ("models: [{name: '', generator: echo}]", ["models.0.name"]),
        ("models: [{name: a, generator: echo}, {name: a, generator: echo}]", ["two models", "a"]),
        ("models: [{name: a, generator: echo, options: {chunks: 0}}]", ["models.0.options.chunks", "1"]),
        (
            "models: [{name: a, generator: llamacpp, options: {path: /no/such.gguf}}]",
            ["models.0.options.path", "/no/such.gguf"],
        ),
        ("log: {level: loud}", ["log.level", "'debug'", "loud"]),
    ],
)
def test_a_complaint_names_the_key_the_file_and_what_is_allowed(
    write: Write, text: str, names: list[str]
) -> None:
    path = write(text)
    told = complaint(path)
    assert told.startswith(f"{path}: ")
    for name in names:
        assert name in told


def test_every_complaint_is_told_at_once(write: Write) -> None:
    told = complaint(write("session: {grace: soon}\nlog: {level: loud}\nnonsense: 1\n"))
    assert len(told.splitlines()) == 3


def test_a_complaint_names_the_variable_that_is_wrong(write: Write) -> None:
    path = write("session: {max_in_flight: 0}")
    told = complaint(path, SLUICE_SESSION__GRACE="soon").splitlines()
    assert any(line.startswith("SLUICE_SESSION__GRACE: session.grace") for line in told)
    assert any(line.startswith(f"{path}: session.max_in_flight") for line in told)


@pytest.mark.parametrize(
    ("variable", "value", "names"),
    [
        ("SLUICE_SESION__GRACE", "1s", ["sesion", "did you mean session?"]),
        ("SLUICE_SESSION__GRAZE", "1s", ["session.graze", "did you mean grace?"]),
        ("SLUICE_SESSION", "1", ["session"]),
        ("SLUICE_MODELS", "[{name: e, generator: echo, options: {chunks: 0}}]", ["models.0.options.chunks"]),
        ("SLUICE_MODELS", "[{", ["not valid YAML"]),
    ],
)
def test_a_wrong_variable_is_named(write: Write, variable: str, value: str, names: list[str]) -> None:
    told = complaint(write(""), **{variable: value})
    for name in (variable, *names):
        assert name in told


def test_processes_that_share_nothing_are_refused_where_they_were_asked_for(write: Write) -> None:
    told = complaint(write(""), SLUICE_SERVER__PROCESSES="2")
    assert told.startswith("SLUICE_SERVER__PROCESSES: server.processes: ")
    shared = {"SLUICE_SERVER__PROCESSES": "2", "SLUICE_QUEUE__DRIVER": "redis"}
    assert load(write(""), shared).server.processes == 2


def test_a_variable_below_what_is_no_section_is_named(write: Write) -> None:
    told = complaint(write("models: [{name: e, generator: echo}]"), SLUICE_MODELS__0__NAME="x")
    assert "SLUICE_MODELS__0__NAME" in told
    assert "models" in told


@pytest.mark.parametrize("secret", ["hunter2: hunter2", "[hunter2", "{hunter2"])
@pytest.mark.parametrize("source", ["file", "environment"])
def test_no_complaint_tells_a_secret(write: Write, secret: str, source: str) -> None:
    if source == "file":
        path = write('auth: {required: true, jwt_secret: ["hunter2"]}')
        told = complaint(path)
    else:
        told = complaint(write("auth: {required: true}"), SLUICE_AUTH__JWT_SECRET=secret)
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "text",
    [
        "jwt_secret: hunter2",
        "operator_key: [hunter2]",
        "operator_key: hunter2",
        f"jwt_secret: {'hunter2' * 5}, access_ttl: 2h, refresh_ttl: 1h",
    ],
)
def test_no_complaint_about_the_section_tells_its_secret(write: Write, text: str) -> None:
    assert "hunter2" not in complaint(write(f"auth: {{{text}}}"))


@pytest.mark.parametrize("url", ["[hunter2]", "http://:hunter2@localhost", "hunter2", "{password: hunter2}"])
def test_no_complaint_tells_the_password_of_the_queue(write: Write, url: str) -> None:
    assert "hunter2" not in complaint(write(f"queue: {{url: {url}}}"))


@pytest.mark.parametrize(
    "url",
    [
        "[hunter2]",
        "oracle://ada:hunter2@db/sluice",
        "postgresql://ada:hunter2/@db/sluice",
        "postgresql://ada:hun#ter2@db/sluice",
        "postgresql://ada:hunter2@db",
        "hunter2",
    ],
)
def test_no_complaint_tells_the_password_of_the_storage(write: Write, url: str) -> None:
    told = complaint(write(""), SLUICE_STORAGE__URL=url)
    assert "storage.url" in told
    assert "ter2" not in told


def test_the_address_of_the_storage_is_shown_without_its_password(write: Write) -> None:
    settings = load(write("storage: {url: 'postgresql://ada:hunter2@db:5432/sluice?ssl=hunter2'}"), {})
    shown = "postgresql+asyncpg://**********@db:5432/sluice?**********"
    assert yaml.safe_load(effective(settings))["storage"]["url"] == shown
    assert shown in repr(settings)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in complaint(tmp_path / "none.yaml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(tmp_path)


def test_broken_yaml_is_named_with_its_line(write: Write) -> None:
    told = complaint(write("server:\n  http: {addr: x\nsession: 1\n"))
    assert "config.yaml" in told
    assert "line" in told
    assert "not valid YAML" in told


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "42"])
def test_a_file_that_is_no_mapping_is_refused(write: Write, text: str) -> None:
    assert "config.yaml" in complaint(write(text))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "config.yaml" in complaint(path)


# ── what is in effect ────────────────────────────────────────────────────────────────────────────


def test_secrets_are_masked_in_what_is_in_effect(write: Write) -> None:
    secret = "hunter2" * 5
    auth = f"{{required: true, jwt_secret: {secret}, operator_key: {secret}}}"
    settings = load(write(f"auth: {auth}"), {})
    assert settings.auth.jwt_secret.get_secret_value() == secret
    assert "hunter2" not in effective(settings)
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://:hunter2@db.example:6379/1", "rediss://**********@db.example:6379/1"),
        ("redis://ada:hun@t/er#2?@db.example", "redis://**********@db.example"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock?**********"),
    ],
)
def test_the_address_of_the_queue_is_shown_without_its_password(write: Write, url: str, shown: str) -> None:
    settings = load(write("queue: {driver: redis}"), {"SLUICE_QUEUE__URL": url})
    assert settings.queue.url.get_secret_value() == url
    assert yaml.safe_load(effective(settings))["queue"]["url"] == shown
    assert shown in repr(settings)


def test_what_is_in_effect_is_yaml_with_every_key(write: Write) -> None:
    told = effective(load(write("session: {grace: 1500ms}"), {}))
    tree = yaml.safe_load(told)
    assert tree["session"]["grace"] == "1.5s"
    # It can be used as a configuration again, but for the secrets.
    told = told.replace("'**********'", "''")
    again = effective(load(write(told), {})).replace("'**********'", "''")
    assert again == told
    assert tree["models"][0]["name"] == "smollm2"
    assert set(tree) == set(Settings.model_fields)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().session.grace = 1.0
