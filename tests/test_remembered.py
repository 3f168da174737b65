"""modules/models/remembered.py: how a model was loaded last comes back, flags win, and no file is trusted."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from modules.errors import BadName, StoreFailed
from modules.models.manager import ModelManager
from modules.models.remembered import FOLDER, NOTHING, ModelMemory
from modules.settings import LoadOptions, Settings
from modules.startup import options_for
from tests.fakes import fake_inventory, make_model_folder

OPTIONS = {
    "model": "tiny", "ctx_size": 2048, "load_in_4bit": True, "gpu_memory": "10 8722MiB", "cpu_memory": "1000B",
    "lora": "style tone=0.5", "disk": True, "disk_cache_dir": "/somewhere", "kv_cache": "int8",
}  # fmt: skip


def options(**fields: object) -> LoadOptions:
    """LoadOptions of the model "tiny"."""
    return LoadOptions.model_validate({"model": "tiny", **fields})


def test_every_option_comes_back_to_the_byte(settings: Settings) -> None:
    chosen = LoadOptions.model_validate(OPTIONS)
    ModelMemory(settings).keep(chosen)
    assert ModelMemory(settings).of("tiny").options == chosen
    assert ModelMemory(settings).of("other") == NOTHING


def test_what_is_as_usual_is_not_written_and_a_load_as_usual_forgets_the_one_before(settings: Settings) -> None:
    memory = ModelMemory(settings)
    memory.keep(options(load_in_8bit=True))
    [file] = (settings.user_data_dir / FOLDER).iterdir()
    assert json.loads(file.read_bytes())["options"] == {"load_in_8bit": True}
    memory.keep(options())
    assert memory.of("tiny") == NOTHING


def test_flags_that_were_given_at_the_start_count_for_more(settings: Settings) -> None:
    ModelMemory(settings).keep(options(ctx_size=2048, load_in_8bit=True))
    started = Settings.model_validate({"user_data_dir": settings.user_data_dir, "ctx_size": 512})
    known = ModelMemory(started).of("tiny")
    assert known.options == options(ctx_size=512, load_in_8bit=True) and known.note == ""


def test_what_does_not_go_with_the_flags_gives_way_and_is_told(settings: Settings) -> None:
    ModelMemory(settings).keep(options(ctx_size=2048, load_in_8bit=True))
    started = Settings.model_validate({"user_data_dir": settings.user_data_dir, "load_in_4bit": True})
    known = ModelMemory(started).of("tiny")
    assert known.options == options(load_in_4bit=True)
    assert "--load-in-8bit and --load-in-4bit" in known.note


def test_a_preset_and_a_load_are_kept_beside_each_other_and_forgotten_together(settings: Settings) -> None:
    memory = ModelMemory(settings)
    memory.keep_preset("tiny", "Creative")
    memory.keep(options(ctx_size=512))
    assert (memory.of("tiny").preset, memory.of("tiny").options) == ("Creative", options(ctx_size=512))
    memory.keep_preset("tiny", "Precise")
    assert (memory.of("tiny").preset, memory.of("tiny").options) == ("Precise", options(ctx_size=512))
    memory.forget("tiny")
    memory.forget("tiny")
    assert memory.of("tiny") == NOTHING


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff", b'{"options": {"ctx_size": -1}}', b'{"options": {"trust_remote_code": true}}',
        b'{"options": {"model": "x"}, "evil": 1}', b'{"options": 3}', b'{"preset": "' + b"x" * 100_000 + b'"}',
        b'{"options": {"gpu_memory": "lots"}}', b"[" * 5000,
    ],
)  # fmt: skip
def test_a_file_that_says_nonsense_is_named_set_aside_and_does_not_stand_in_the_way(
    settings: Settings, content: bytes
) -> None:
    folder = settings.user_data_dir / FOLDER
    folder.mkdir()
    (folder / "tiny.json").write_bytes(content)
    memory = ModelMemory(settings)
    known = memory.of("tiny")
    assert known.options is None and "tiny cannot be read" in known.note and "tiny.json.unreadable" in known.note
    assert (folder / "tiny.json.unreadable").read_bytes() == content
    assert memory.of("tiny") == NOTHING
    memory.keep(options(ctx_size=512))
    assert memory.of("tiny").options == options(ctx_size=512)


def test_names_that_lead_elsewhere_are_no_names(settings: Settings) -> None:
    memory = ModelMemory(settings)
    assert memory.of("../x") == NOTHING
    with pytest.raises(BadName):
        memory.keep(LoadOptions.model_validate({"model": "../x", "ctx_size": 512}))
    assert list(settings.user_data_dir.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told(settings: Settings, tmp_path: Path) -> None:
    (settings.user_data_dir / FOLDER).write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreFailed, match="could not be kept"):
        ModelMemory(settings).keep(options(ctx_size=512))


def test_a_start_loads_as_it_was_loaded_last_if_that_still_goes(settings: Settings) -> None:
    make_model_folder(settings.model_dir, "tiny")
    with closing(ModelManager(settings, loaders={}, read_inventory=lambda _: fake_inventory(ram_gib=16))) as models:
        assert options_for(models, "tiny") == options()
        models.memory.keep(options(ctx_size=512))
        assert options_for(models, "tiny") == options(ctx_size=512)
        models.memory.keep(options(gpu_memory="10"))  # the GPU has gone since
        assert options_for(models, "tiny") == options()
