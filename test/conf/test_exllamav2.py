"""Settings of models on a GPU, and what is made of them. None of it needs one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cmd.wire import engines
from cmd.wire.options import chat_rules
from internal.biz.models import Feature, Sampling
from internal.conf.load import ConfigError, load
from internal.conf.settings import Settings
from internal.generator.exllamav2.engine import ExLlamaV2Generator
from internal.generator.exllamav2.options import DraftOptions, LoadOptions, LoraOptions
from internal.metrics.instruments import Instruments

ROOT = Path(__file__).parents[2]


def model(name: str = "m", **options: Any) -> dict[str, Any]:
    return {"name": name, "generator": "exllamav2", "options": {"path": "models/m", **options}}


def read(tmp_path: Path, *models: dict[str, Any]) -> Settings:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"models": list(models)}))
    return load(file, {})


def built(settings: Settings) -> list[ExLlamaV2Generator]:
    instruments = Instruments()
    hosts = engines.exllamav2_hosts(settings.models, instruments)
    made = [engines.generator(it, instruments, hosts) for it in settings.models]
    assert all(isinstance(engine, ExLlamaV2Generator) for engine in made)
    return made  # type: ignore[return-value]


def test_the_file_that_comes_with_sluice_is_good() -> None:
    (engine,) = built(load(ROOT / "configs" / "gpu.yaml", {}))
    assert engine.capabilities.slots == 32
    assert engine.capabilities.context_length == 32768


def test_every_option_reaches_the_engine(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.touch()
    asked = model(
        cache="q4",
        cache_tokens=8192,
        max_batch_size=4,
        max_seq_len=4096,
        chunk_size=1024,
        gpu_split=[10, 20.5],
        warmup=False,
        draft={"path": "models/draft", "tokens": 3},
        lora=[{"path": "loras/a", "scale": 0.5}],
        template=str(template),
        stop=["END"],
        max_output_tokens=99,
        temperature=0.1,
        top_p=0.2,
        top_k=3,
        min_p=0.4,
        repetition_penalty=1.05,
        idle_unload="10m",
    )
    (engine,) = built(read(tmp_path, asked))
    options = engine.options
    assert options.load == LoadOptions(
        path=Path("models/m"),
        cache="q4",
        cache_tokens=8192,
        max_seq_len=4096,
        slots=4,
        chunk_size=1024,
        gpu_split=(10.0, 20.5),
        draft=DraftOptions(Path("models/draft"), 3),
        warmup=False,
    )
    assert options.loras == (LoraOptions(Path("loras/a"), 0.5),)
    assert (options.template, options.stop, options.max_output_tokens) == (template, ("END",), 99)
    assert options.sampling == Sampling(
        temperature=0.1, top_p=0.2, top_k=3, min_p=0.4, repetition_penalty=1.05
    )


def test_a_model_rests_when_nobody_asks_for_it_and_has_a_supervisor(tmp_path: Path) -> None:
    (asked,) = read(tmp_path, model(idle_unload="10m")).models
    assert asked.idle_unload_s == 600
    assert asked.may_be_lost


def test_models_with_one_path_share_what_is_loaded(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        model("plain"),
        model("pirate", lora=[{"path": "loras/pirate"}], temperature=1),
        model("other", path="models/other"),
    )
    hosts = engines.exllamav2_hosts(settings.models, Instruments())
    assert list(hosts) == [Path("models/m"), Path("models/other")]


def test_only_the_one_model_of_a_process_has_its_steps_recorded(tmp_path: Path) -> None:
    def recorded(*models: dict[str, Any]) -> list[bool]:
        hosts = engines.exllamav2_hosts(read(tmp_path, *models).models, Instruments())
        return [host._options.graphs for host in hosts.values()]

    assert recorded(model("plain"), model("pirate", lora=[{"path": "loras/pirate"}])) == [True]
    assert recorded(model("plain"), model("other", path="models/other")) == [False, False]


def test_what_is_loaded_once_cannot_differ(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain and small share models/m"):
        read(tmp_path, model("plain"), model("small", cache="q4"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"path": None}, "options.path"),
        ({"cache": "q5"}, "q8"),
        ({"chunk_size": 300}, "multiple of 256"),
        ({"gpu_split": []}, "gpu_split"),
        ({"gpu_split": [-1]}, "gpu_split"),
        ({"draft": {"path": "d", "tokens": 0}}, "draft.tokens"),
        ({"lora": ["loras/a"]}, "lora"),
        ({"slots": 4}, "slots"),
    ],
)
def test_what_cannot_be_is_said_by_name(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, model(**wrong))


def test_it_can_do_all_but_look_at_images_and_think_harder(tmp_path: Path) -> None:
    features = chat_rules(read(tmp_path, model())).features["m"]
    lacks = {Feature.IMAGES, Feature.REASONING_EFFORT}
    assert frozenset(Feature) - features == lacks
