"""Flags: where they come from, which wins, and one line for everything that cannot be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.make_flags import render
from modules.errors import BadFlag, NotAvailableHere
from modules.hardware import Device, Inventory
from modules.settings import LoadOptions, Settings, check_machine, flag_name, flag_of
from modules.settings_reading import read_settings
from modules.units import GiB, MiB

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def machine(*gpus_gib: int) -> Inventory:
    gpus = tuple(Device(f"cuda:{i}", "cuda", "card", size * GiB, size * GiB) for i, size in enumerate(gpus_gib))
    return Inventory(
        gpus=gpus,
        cpu=Device("cpu", "cpu", "cpu", 16 * GiB, 12 * GiB),
        disk=Device("disk", "disk", "disk", 100 * GiB, 50 * GiB),
        physical_cores=4,
    )


def test_nothing_given_means_the_defaults() -> None:
    settings = read_settings([], {})
    assert settings == Settings.model_validate({})
    assert (settings.listen_port, settings.host, settings.model_dir) == (7860, "127.0.0.1", Path("models"))


def test_the_seeds_commands_are_understood() -> None:
    assert read_settings(["--load-in-8bit"], {}).load_in_8bit
    assert read_settings(["--auto-devices", "--gpu-memory", "10"], {}).gpu_memory == (10 * GiB,)
    assert read_settings(["--auto-devices", "--gpu-memory", "8722MiB"], {}).gpu_memory == (8722 * MiB,)
    assert read_settings(["--auto-devices", "--disk"], {}).disk
    launched = {"LOCAL_RANK": "0"}
    started = read_settings(["--local_rank=0", "--deepspeed", "--chat", "--model", "gpt-j-6B"], launched)
    assert (started.deepspeed, started.chat, started.local_rank, started.model) == (True, True, 0, "gpt-j-6B")


def test_one_value_a_gpu_in_any_unit() -> None:
    given = read_settings(["--gpu-memory", "10", "8722MiB", "10GB", "0.5GiB"], {}).gpu_memory
    assert given == (10 * GiB, 8722 * MiB, 10**10, GiB // 2)


def test_a_machine_to_plan_for_is_named_card_by_card() -> None:
    settings = read_settings(["--plan", "--gpu", "24GiB", "--gpu", "3060", "A100-80GB", "--ram", "64GiB"], {})
    assert (settings.gpu, settings.ram) == (("24GiB", "3060", "A100-80GB"), 64 * GiB)
    assert read_settings(["--plan"], {"SNUG_GPU": "24GiB,3060"}).gpu == ("24GiB", "3060")


def test_command_line_wins_over_environment_wins_over_file(empty_folder: Path) -> None:
    (empty_folder / "user_data").mkdir()
    (empty_folder / "user_data" / "settings.yaml").write_text("listen-port: 1001\ndtype: fp32\ngpu_memory: [1, 2]\n")
    environment = {"SNUG_LISTEN_PORT": "1002", "SNUG_GPU_MEMORY": "3 4"}
    settings = read_settings(["--listen-port", "1003"], environment)
    assert (settings.listen_port, settings.dtype, settings.gpu_memory) == (1003, "fp32", (3 * GiB, 4 * GiB))
    assert read_settings([], environment).listen_port == 1002
    assert read_settings([], {}).listen_port == 1001


def test_the_file_is_looked_for_in_the_user_data_folder_or_named(empty_folder: Path) -> None:
    (empty_folder / "elsewhere").mkdir()
    (empty_folder / "elsewhere" / "settings.yaml").write_text("load_in_4bit: true")
    assert read_settings(["--user-data-dir", "elsewhere"], {}).load_in_4bit
    (empty_folder / "mine.yaml").write_text("bf16: true")
    assert read_settings(["--settings", "mine.yaml"], {}).bf16
    assert read_settings([], {"SNUG_SETTINGS": "mine.yaml"}).bf16


BAD_COMMAND_LINES = [
    (["--listen-port", "99999"], "--listen-port 99999"),
    (["--listen-port", "abc"], "--listen-port abc"),
    (["--listen-port", "-5"], "--listen-port"),
    (["--listen-port", "0"], "--listen-port 0"),
    (["--listen-port"], "--listen-port"),
    (["--load-in-4bt"], "Did you mean --load-in-4bit?"),
    (["--load_in_8bit_"], "Did you mean --load-in-8bit?"),
    (["--port", "7860"], "--port"),
    (["--frobnicate"], "--frobnicate"),
    (["model"], "'model' belongs to no flag"),
    (["--dtype", "int3"], "--dtype int3"),
    (["--dtype", ""], "--dtype"),
    (["--quant-type", "nf5", "--load-in-4bit"], "--quant-type nf5"),
    (["--compute-dtype", "bf8", "--load-in-4bit"], "--compute-dtype bf8"),
    (["--attn-implementation", "magic"], "--attn-implementation magic"),
    (["--ctx-size", "0"], "--ctx-size 0"),
    (["--ctx-size", "-1"], "--ctx-size"),
    (["--ctx-size", "1e9"], "--ctx-size 1e9"),
    (["--ctx-size", "99999999999"], "--ctx-size 99999999999"),
    (["--gpu-memory", "0"], "--gpu-memory"),
    (["--gpu-memory", "-1"], "--gpu-memory"),
    (["--gpu-memory", "1e309"], "--gpu-memory"),
    (["--gpu-memory", "nan"], "--gpu-memory"),
    (["--gpu-memory", "10 bananas"], "--gpu-memory"),
    (["--gpu-memory"], "--gpu-memory"),
    (["--cpu-memory", "150MB!"], "--cpu-memory 150MB!"),
    (["--cpu-memory", "99999TiB"], "--cpu-memory 99999TiB"),
    (["--cpu-memory", "1", "2"], "'2' belongs to no flag"),
    (["--local_rank", "x"], "--local_rank x"),
    (["--local_rank", "-3"], "--local_rank"),
    (["--local_rank", "0"], "deepspeed launcher"),
    (["--model-dir", "absent"], "--model-dir absent"),
    (["--settings", "absent.yaml"], "--settings absent.yaml"),
    (["--load-in-8bit=maybe"], "--load-in-8bit"),
    (["--load-in-8bit", "--load-in-4bit"], "--load-in-8bit and --load-in-4bit cannot go together"),
    (["--deepspeed", "--load-in-8bit"], "--deepspeed and --load-in-8bit cannot go together"),
    (["--deepspeed", "--load-in-4bit"], "--deepspeed and --load-in-4bit cannot go together"),
    (["--deepspeed", "--auto-devices"], "--deepspeed and --auto-devices"),
    (["--deepspeed", "--gpu-memory", "3"], "--deepspeed and --gpu-memory"),
    (["--deepspeed", "--cpu-memory", "3"], "--deepspeed and --cpu-memory"),
    (["--deepspeed", "--disk"], "--nvme-offload-dir"),
    (["--cpu", "--gpu-memory", "3"], "--cpu and --gpu-memory"),
    (["--chat", "--notebook"], "--chat and --notebook"),
    (["--quant-type", "nf4"], "--quant-type needs --load-in-4bit"),
    (["--use-double-quant"], "--use-double-quant needs --load-in-4bit"),
    (["--compute-dtype", "fp32"], "--compute-dtype needs --load-in-4bit"),
    (["--disk-cache-dir", "x"], "--disk-cache-dir needs --disk"),
    (["--nvme-offload-dir", "x"], "--nvme-offload-dir needs --deepspeed"),
    (["--json"], "--json needs --plan or --check"),
    (["--gpu", "3060"], "--gpu needs --plan"),
    (["--plan", "--gpu", "3061"], "RTX 3060"),
    (["--plan", "--gpu", "24GiB", "--gpu", "0"], "--gpu"),
    (["--plan", "--gpu", "24GiB", "--cpu"], "--cpu and --gpu cannot go together"),
    (["--plan", "--ram", "much"], "--ram much"),
    (["--ram", "64GiB"], "--ram needs --plan"),
    (["--report"], "--report needs --plan"),
    (["--mode", "qlora"], "--mode needs --plan"),
    (["--plan", "--mode", "dream"], "--mode dream"),
    (["--plan", "--check"], "--plan and --check cannot go together"),
    (["--bf16", "--dtype", "fp32"], "--bf16 and --dtype fp32"),
]


@pytest.mark.parametrize(
    ("argv", "named"), BAD_COMMAND_LINES, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_a_bad_command_line_names_flag_and_remedy_in_one_line(argv: list[str], named: str) -> None:
    with pytest.raises(BadFlag) as caught:
        read_settings(argv, {})
    text = str(caught.value)
    assert named in text
    assert "\n" not in text and len(text) > len(named) + 10


@pytest.mark.parametrize("argv", [["--listen-port", "99999"], ["--nonsense"], ["--deepspeed", "--load-in-8bit"]])
def test_the_program_itself_ends_with_code_2_one_line_and_no_traceback(argv: list[str], empty_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("snug: ") and done.stderr.count("\n") == 1 and not done.stdout
    assert list(empty_folder.iterdir()) == []


def test_help_groups_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    for name in Settings.model_fields:
        assert flag_name(name) in done.stdout
    assert "DeepSpeed ZeRO-3:" in done.stdout


BAD_FILES = {
    "tabs": "dtype:\n\t- x",
    "list": "- dtype",
    "scalar": "hello",
    "python object": "dtype: !!python/object/apply:os.system ['true']",
    "alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\ndtype: *b",
    "unknown key": "load_in_5bit: true",
    "wrong type": "listen_port: [1]",
    "not a bool": "load_in_4bit: perhaps",
    "binary": b"\xff\xfe\x00\x01",
    "huge": "#" + "x" * 300_000,
    "deep": "[" * 5000,
    "conflict": "load_in_4bit: true\nload_in_8bit: true",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_broken_settings_file_is_named_and_left_as_it_is(content: str | bytes, empty_folder: Path) -> None:
    path = empty_folder / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadFlag) as caught:
        read_settings(["--user-data-dir", str(empty_folder)], {})
    assert "settings.yaml" in str(caught.value) or "--load-in-4bit" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(BadFlag, match="SNUG_LISTEN_PORT many"):
        read_settings([], {"SNUG_LISTEN_PORT": "many"})


def test_gpu_limits_need_gpus() -> None:
    with pytest.raises(NotAvailableHere, match="no GPU"):
        check_machine(read_settings(["--gpu-memory", "10"], {}), machine())
    with pytest.raises(NotAvailableHere, match="2 values, but there is 1 GPU"):
        check_machine(read_settings(["--gpu-memory", "10", "9"], {}), machine(24))
    with pytest.raises(NotAvailableHere, match="flash_attention_2"):
        check_machine(read_settings(["--attn-implementation", "flash_attention_2"], {}), machine())
    check_machine(read_settings(["--gpu-memory", "10", "9"], {}), machine(24, 24))
    check_machine(read_settings(["--auto-devices"], {}), machine())


def test_the_load_options_of_a_start_are_its_model_flags_unchanged() -> None:
    options = read_settings(["--cpu-memory", "150MiB", "--gpu-memory", "10", "--listen"], {}).load_options
    assert type(options) is LoadOptions
    assert (options.cpu_memory, options.gpu_memory) == (150 * MiB, (10 * GiB,))


def test_remote_code_and_folders_are_no_load_options() -> None:
    assert {"trust_remote_code", "model_dir", "user_data_dir", "extensions"}.isdisjoint(LoadOptions.model_fields)


def test_every_flag_has_help_and_a_group() -> None:
    for name, field in Settings.model_fields.items():
        assert flag_of(name).group
        assert field.description and field.description.endswith((".", "--deepspeed"))
        assert field.annotation is bool or flag_of(name).metavar or re.search("Literal", str(field.annotation))


def test_the_flags_page_is_what_the_declarations_say() -> None:
    assert (ROOT / "docs" / "flags.md").read_text(encoding="utf-8") == render()


def test_the_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SNUG_VERBOSE", "true")
    assert read_settings([]).verbose
