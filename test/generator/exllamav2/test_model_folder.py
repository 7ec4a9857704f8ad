"""What a model's folder says, and what is said of one that is none."""

import json
from pathlib import Path

import pytest

from internal.biz.errors import GenerationFailed
from internal.biz.models import Sampling
from internal.generator.exllamav2.model_folder import ModelFolder


def write(folder: Path, name: str, **values: object) -> None:
    (folder / name).write_text(json.dumps(values))


def test_the_files_say_how_to_talk_to_the_model(model_folder: Path) -> None:
    write(model_folder, "config.json", eos_token_id=2)
    write(model_folder, "generation_config.json", eos_token_id=[2, 7], temperature=0.6, top_k=20)
    write(
        model_folder,
        "tokenizer_config.json",
        bos_token={"content": "<s>"},
        eos_token="</s>",
        chat_template="hello",
    )
    folder = ModelFolder.read(model_folder)
    assert folder.stop_tokens == {2, 7}
    assert (folder.bos_token, folder.eos_token, folder.chat_template) == ("<s>", "</s>", "hello")
    assert folder.sampling == Sampling(temperature=0.6, top_k=20)


def test_a_model_whose_makers_want_no_chance_gets_none(model_folder: Path) -> None:
    write(model_folder, "generation_config.json", do_sample=False, temperature=0.6)
    assert ModelFolder.read(model_folder).sampling == Sampling(temperature=0.0)


def test_a_template_in_a_file_of_its_own_comes_first(model_folder: Path) -> None:
    (model_folder / "chat_template.jinja").write_text("from the file")
    assert ModelFolder.read(model_folder).chat_template == "from the file"


def test_of_several_templates_the_one_for_chats_is_taken(model_folder: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    write(model_folder, "tokenizer_config.json", chat_template=templates)
    assert ModelFolder.read(model_folder).chat_template == "chat"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "ends in .safetensors"),
    ],
)
def test_what_is_missing_is_said_by_name(model_folder: Path, missing: str, said: str) -> None:
    (model_folder / missing).unlink()
    with pytest.raises(GenerationFailed, match=said) as caught:
        ModelFolder.read(model_folder)
    assert "set options.path" in caught.value.message


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(GenerationFailed, match="there is no model folder"):
        ModelFolder.read(tmp_path / "nowhere")


def test_a_file_that_cannot_be_read_is_named(model_folder: Path) -> None:
    (model_folder / "config.json").write_text("{")
    with pytest.raises(GenerationFailed, match=r"config\.json cannot be read"):
        ModelFolder.read(model_folder)
