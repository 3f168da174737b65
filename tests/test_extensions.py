"""Extensions are found, run, called in order, kept apart from each other and from what they lack."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pluggy
import pytest

from modules.errors import BadFlag, NotFound
from modules.extensions import hooks
from modules.extensions.faults import are_two_texts, is_dict, is_text
from modules.extensions.manager import Extensions

BROKEN = {
    "raises": ("raise RuntimeError('no')", "RuntimeError: no"),
    "misspelt": ("def setup(:", "SyntaxError"),
    "needs": ("import a_module_that_is_not_there", "ModuleNotFoundError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "bad_setup": ("def setup(): 1 / 0", "ZeroDivisionError"),
    "wants_more": ("def input_modifier(string, state, is_chat, mood): return string", "wants 'mood'"),
}
SHIPPED = ["character_bias", "example", "gallery", "long_replies", "perplexity_colors", "speech", "web_search"]


def write(folder: Path, name: str, source: str, file: str = "script.py") -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / file).write_text(source)


def started(
    folder: Path, *names: str, timeout_s: float = 30, hook_s: float = 20, kept: Path | None = None
) -> Extensions:
    extensions = Extensions(folder, names, kept=kept, hook_timeout_s=hook_s)
    extensions.start(timeout_s)
    return extensions


def read(extensions: Extensions, text: str, told: list[str] | None = None) -> Any:
    values = {"string": text, "state": {"name2": "Wren"}, "is_chat": True}
    return extensions.change("input_modifier", values, ("string",), is_text, (told if told is not None else []).append)


def test_hooks_run_in_the_order_given(tmp_path: Path) -> None:
    write(tmp_path, "shout", "def input_modifier(text): return text.upper()")
    write(tmp_path, "greet", "def input_modifier(text): return 'hi ' + text")
    assert read(started(tmp_path, "shout", "greet"), "you") == "hi YOU"
    assert read(started(tmp_path, "greet", "shout"), "you") == "HI YOU"


def test_setup_is_called_once(tmp_path: Path) -> None:
    write(tmp_path, "count", "calls = []\ndef setup(): calls.append(1)\ndef input_modifier(t): return str(len(calls))")
    assert read(started(tmp_path, "count", "count"), "") == "1"


@pytest.mark.parametrize("name", BROKEN)
def test_one_that_cannot_start_is_off_with_the_reason_and_the_others_run(name: str, tmp_path: Path) -> None:
    source, reason = BROKEN[name]
    write(tmp_path, name, source)
    write(tmp_path, "good", "def input_modifier(text): return 'ok'")
    extensions = started(tmp_path, name, "good")
    assert extensions.names == ["good"]
    assert read(extensions, "x") == "ok"
    (problem,) = extensions.problems
    assert problem.extension == name
    assert reason in problem.reason
    with pytest.raises(NotFound):
        extensions.switch(name, on=True)


def test_the_trace_shows_the_scripts_own_lines_only(tmp_path: Path) -> None:
    write(tmp_path, "deep", "def setup():\n    inner()\ndef inner():\n    raise ValueError('x')")
    trace = started(tmp_path, "deep").problems[0].trace
    assert "script.py, line 2, in setup\n    inner()\nscript.py, line 4, in inner" in trace
    assert "manager.py" not in trace


def test_one_that_never_finishes_importing_is_given_up(tmp_path: Path) -> None:
    write(tmp_path, "stuck", "while True: pass")
    before = threading.active_count()
    assert "did not return" in started(tmp_path, "stuck", timeout_s=0.2).problems[0].reason
    assert threading.active_count() == before  # its thread was stopped


@pytest.mark.parametrize("body", ["raise ValueError('x')", "return None", "return 7", "return 'a' * 10_000_001",
                                  "raise SystemExit", "raise KeyboardInterrupt"])  # fmt: skip
def test_a_hook_that_misbehaves_is_named_and_leaves_the_text_as_it_was(body: str, tmp_path: Path) -> None:
    write(tmp_path, "bad", f"def input_modifier(text):\n    {body}")
    write(tmp_path, "good", "def input_modifier(text): return text + '!'")
    extensions, told = started(tmp_path, "bad", "good"), list[str]()
    assert [read(extensions, "mine", told) for _ in range(3)] == ["mine!"] * 3
    assert len(extensions.problems) == 1
    assert extensions.problems[0].hook == "input_modifier"
    assert told[0].startswith("Extension bad: input_modifier ")


def test_a_hook_that_fails_half_way_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, "half", "def input_modifier(text, state):\n    state['temperature'] = 5\n    raise ValueError('x')")
    write(tmp_path, "whole", "def input_modifier(text, state):\n    state['seen'] = True\n    return text + '!'")
    state = {"name2": "Wren"}
    values = {"string": "mine", "state": state, "is_chat": True}
    extensions = started(tmp_path, "half", "whole")
    assert extensions.change("input_modifier", values, ("string",), is_text, lambda _: None) == "mine!"
    assert state == {"name2": "Wren", "seen": True}


def test_a_hook_that_hangs_is_stopped_and_off_until_it_is_switched_on_again(tmp_path: Path) -> None:
    write(tmp_path, "slow", "spin = True\ndef input_modifier(text):\n    while spin: pass\n    return 'woke'")
    extensions, told = started(tmp_path, "slow", hook_s=0.2), list[str]()
    assert read(extensions, "mine", told) == "mine"
    assert "did not return within 0.2 s" in told[0]
    assert read(extensions, "mine", told) == "mine"
    assert len(told) == 1  # it was not even asked
    extensions._all["slow"].script.module.spin = False  # type: ignore[union-attr]
    extensions.switch("slow", on=False)
    extensions.switch("slow", on=True)
    assert extensions.problems == ()
    assert read(extensions, "mine", told) == "woke"


def test_a_switched_off_extension_is_not_called_and_only_started_ones_can_be_switched(tmp_path: Path) -> None:
    write(tmp_path, "shout", "def input_modifier(text): return text.upper()")
    write(tmp_path, "other", "open('/nowhere/at/all')")
    extensions = started(tmp_path, "shout")
    extensions.switch("shout", on=False)
    assert read(extensions, "a") == "a"
    assert not extensions.take_part
    for name in ("other", "../outside", "", "shout/../other"):
        with pytest.raises(NotFound):
            extensions.switch(name, on=True)
    assert {card.name: card.running for card in extensions.cards()} == {"shout": False, "other": None}


@pytest.mark.parametrize("name", ["absent", "../outside", "", "a/b", "good.py"])
def test_only_folders_with_a_script_can_be_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, "good", "")
    with pytest.raises(BadFlag, match="--extensions"):
        Extensions(tmp_path, [name])


def test_hooks_may_be_called_from_many_threads(tmp_path: Path) -> None:
    write(tmp_path, "twice", "def input_modifier(text): return text * 2")
    extensions, results = started(tmp_path, "twice"), list[str]()
    threads = [threading.Thread(target=lambda: results.append(read(extensions, "a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert results == ["aa"] * 8


# Shapes that scripts have


ARITIES = {
    "def input_modifier(string, state, is_chat=False): return f\"{string}{state['name2']}{is_chat}\"": "aWrenTrue",
    "def input_modifier(text, state): return text + state['name2']": "aWren",
    "def input_modifier(string): return string + '1'": "a1",
    "def input_modifier(s, st=None, chat=None): return f\"{s}{st['name2']}{chat}\"": "aWrenTrue",
    "def input_modifier(is_chat, string): return f'{string}{is_chat}'": "aTrue",
    "def input_modifier(string, **rest): return string + ','.join(sorted(rest))": "ais_chat,state",
    "def input_modifier(string, *, state): return string + state['name2']": "aWren",
    "class Call:\n    def __call__(self, string, state): return string + 'c'\ninput_modifier = Call()": "ac",
}


@pytest.mark.parametrize("source", ARITIES)
def test_functions_may_take_fewer_arguments_under_other_names(source: str, tmp_path: Path) -> None:
    write(tmp_path, "shape", source)
    extensions = started(tmp_path, "shape")
    assert (read(extensions, "a"), extensions.problems) == (ARITIES[source], ())


def test_an_older_custom_generate_reply_gets_what_it_asks_for(tmp_path: Path) -> None:
    source = (
        "def custom_generate_reply(question, original_question, seed, state, eos_token=None, stopping_strings=None):\n"
        "    yield f'{question}|{original_question}|{seed}|{eos_token}|{stopping_strings}'"
    )
    write(tmp_path, "own", source)
    values = {
        "question": "prompt", "original_question": "hi", "seed": 3, "state": {}, "stopping_strings": ["x"],
        "is_chat": True,
    }  # fmt: skip
    assert list(started(tmp_path, "own").reply(values, list[str]().append)) == ["prompt|hi|3|None|['x']"]


def test_a_misspelt_hook_and_one_that_snug_lacks_are_told(tmp_path: Path) -> None:
    write(tmp_path, "typo", "def imput_modifier(s): return s\ndef tokenizer_modifier(*a): pass\ndef helper(): pass")
    (card,) = started(tmp_path, "typo").cards()
    assert any("is input_modifier meant?" in remark for remark in card.remarks)
    assert any("tokenizer_modifier is text-generation-webui's" in remark for remark in card.remarks)
    assert len(card.remarks) == 2


def test_torch_can_be_named_derived_from_and_decorated_with_but_not_used_here(tmp_path: Path) -> None:
    write(
        tmp_path, "mixed",
        "import torch\nimport torch.nn.functional as F\nfrom transformers import LogitsProcessor\n"
        "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "class Mine(LogitsProcessor):\n"
        "    def __call__(self, ids: torch.LongTensor, scores: 'torch.Tensor | None'): ...\n"
        "mine = Mine()\n@torch.no_grad()\ndef output_modifier(string): return string + '!'\n"
        "def input_modifier(string): return str(torch.zeros(3))",
    )  # fmt: skip
    extensions, told = started(tmp_path, "mixed"), list[str]()
    assert extensions.names == ["mixed"]
    assert read(extensions, "mine", told) == "mine"
    assert "torch.zeros is not in the web process" in told[0]
    values = {"string": "a", "state": {}, "is_chat": True}
    assert extensions.change("output_modifier", values, ("string",), is_text, told.append) == "a!"


def test_parts_of_text_generation_webui_that_are_not_there_are_named_and_the_rest_runs(tmp_path: Path) -> None:
    write(
        tmp_path, "deep",
        "import modules.shared as shared\nfrom modules import chat, shared as again\n"
        "from modules.text_generation import encode, stream_chat\nfrom modules.ui_chat import redraw\n"
        "from modules.logging_colors import logger\nassert shared.args.nothing is None\n"
        "def input_modifier(string):\n    logger.debug('x')\n    return string + str(shared.args.listen)\n"
        "def output_modifier(string): return redraw(string)\n"
        "def bot_prefix_modifier(string): return string + str(shared.gradio['textbox'])",
    )  # fmt: skip
    extensions, told = started(tmp_path, "deep"), list[str]()
    (card,) = extensions.cards()
    assert "modules.text_generation.stream_chat, modules.ui_chat.redraw" in card.remarks[0]
    assert read(extensions, "a") == "aFalse"
    for hook in ("output_modifier", "bot_prefix_modifier"):
        values = {"string": "a", "state": {}, "is_chat": True}
        values = values if hook == "output_modifier" else {"string": "a", "state": {}}
        assert extensions.change(hook, values, ("string",), is_text, told.append) == "a"
    assert "modules.ui_chat.redraw is a part of text-generation-webui" in told[0]
    assert "shared.gradio['textbox']" in told[1]


def test_an_extension_has_files_of_its_own_and_no_other_extensions(tmp_path: Path) -> None:
    write(tmp_path, "parts", "WORD = 'own'", "words.py")
    write(
        tmp_path, "parts",
        "from extensions.parts.words import WORD\nfrom . import words\nimport extensions.parts.words as again\n"
        "import extensions.other.script as other\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Thing:\n    name: 'str' = WORD\n"
        "def input_modifier(s): return Thing().name + words.WORD + again.WORD\n"
        "def output_modifier(s): return other.x()",
    )  # fmt: skip
    extensions, told = started(tmp_path, "parts"), list[str]()
    assert read(extensions, "") == "ownownown"
    values = {"string": "a", "state": {}, "is_chat": True}
    extensions.change("output_modifier", values, ("string",), is_text, told.append)
    assert "belongs to another extension" in told[0]


def test_an_extension_may_be_called_like_a_module_of_python(tmp_path: Path) -> None:
    write(tmp_path, "json", "import json\ndef input_modifier(s): return json.dumps([s])")
    assert read(started(tmp_path, "json"), "a") == '["a"]'
    assert json.dumps([1]) == "[1]"


# Params


def test_params_are_kept_and_come_back_before_setup(tmp_path: Path) -> None:
    source = (
        "params = {'display_name': 'Mood', 'word': 'a', 'n': 1, 'made': object()}\nseen = []\n"
        "def setup(): seen.append(params['word'])\n"
        "def input_modifier(s): return f\"{params['word']}{params['n']}{seen[0]}\""
    )
    write(tmp_path, "mood", source)
    first = started(tmp_path, "mood", kept=tmp_path / "kept")
    assert first.title("mood") == "Mood"
    first._all["mood"].params.update(word="b", n=2.5)
    first.keep("mood")
    assert read(started(tmp_path, "mood", kept=tmp_path / "kept"), "") == "b2.5b"


@pytest.mark.parametrize("text", ["{", "[]", '{"word": 7, "other": 1}', "null"])
def test_kept_params_that_make_no_sense_are_left_out(text: str, tmp_path: Path) -> None:
    write(tmp_path, "mood", "params = {'word': 'a'}\ndef input_modifier(s): return str(params)")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mood.json").write_text(text)
    assert read(started(tmp_path, "mood", kept=tmp_path / "kept"), "") == "{'word': 'a'}"


# The hooks themselves, and those that come with Snug


def test_every_hook_is_documented_with_an_example_and_the_example_extension_has_them_all() -> None:
    page = Path("docs/extensions.md").read_text(encoding="utf-8")
    for name in hooks.NAMES:
        assert "`" in (getattr(hooks.Hooks, name).__doc__ or ""), name
        assert f"### `{name}(" in page, name
    extensions = started(Path("extensions"), "example")
    assert set(extensions.cards()[0].hooks) == set(hooks.NAMES)


def test_hooks_fit_on_one_screen() -> None:
    lines = Path(hooks.__file__).read_text(encoding="utf-8").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("class Hooks"))
    end = next(number for number, line in enumerate(lines) if line.startswith("NAMES"))
    assert end - begin < 60


def test_a_plugin_with_another_argument_is_refused_by_pluggy() -> None:
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks.Hooks)

    class Wrong:
        @hooks.implements
        def input_modifier(self, words: str) -> str:
            return words

    with pytest.raises(pluggy.PluginValidationError):
        manager.register(Wrong())


def test_all_that_come_with_snug_start_without_a_word_and_say_what_they_are() -> None:
    extensions = started(Path("extensions"), *SHIPPED)
    assert extensions.names == SHIPPED
    assert extensions.problems == ()
    for card in extensions.cards():
        assert card.running is True
        assert card.about
        assert card.remarks == ()


@pytest.mark.parametrize(("check", "good", "bad"), [
    (is_text, "a", b"a"), (are_two_texts, ["a", "b"], ("a",)), (are_two_texts, ("a", "b"), ("a", None)),
    (is_dict, {}, []),
])  # fmt: skip
def test_results_are_checked(check: Any, good: object, bad: object) -> None:
    assert (check(good), bool(check(bad))) == ("", True)


def test_colours_of_a_reply_full_of_code_take_no_time() -> None:
    extensions = Extensions(Path(__file__).parent.parent / "extensions", ["perplexity_colors"], hook_timeout_s=1)
    extensions.start()
    code, said = "`a` b\n" * 60_000, "".join(f" w{n}" for n in range(1000))
    tokens = [{"text": f" w{n}", "probability": 0.3, "top": []} for n in range(1000)]
    given = {"string": code + said, "state": {"token_probabilities": tokens}, "is_chat": True}
    made = extensions.change("output_modifier", given, ("string",), is_text, lambda _: None)
    assert extensions.problems == ()
    assert made.count("<span") == 1000
