"""Chat templates from strangers: harmless ones render as in transformers, the others end with a named error."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from modules.chat.rendering import ChatTemplate, _longest_shown, _shown_part, render_pieces
from modules.chat.templates import MAX_TEMPLATE_CHARACTERS, TemplateRefused, TemplateWorker
from modules.engine.turns import Turns
from modules.errors import BadChatTemplate
from modules.messages import ChatMessage

MESSAGES = [{"role": "user", "content": " hi <b> "}, {"role": "assistant", "content": "hello"}]
VARIABLES = {"messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": True, "bos_token": "<s>"}


@pytest.fixture(scope="module")
def worker() -> Iterator[TemplateWorker]:
    started = TemplateWorker()
    yield started
    started.close()


HARMLESS = [
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{% endfor %}",
    "  {% if add_generation_prompt %}\n  yes\n  {% endif %}\nend",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "{{ messages | tojson }} {{ messages | tojson(indent=2) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}",
    "{{ strftime_now('%Y') }} {{ dict(a=1)['a'] }} {{ dict.fromkeys(['k']) }}",
    "{% macro line(m) %}<{{ m.role }}>{% endmacro %}{% for m in messages %}{{ line(m) }}{% endfor %}",
    "{{ messages[0]['content'].split('<')[0] }}{{ messages[-1].content[:3] }}{{ undefined_variable }}",
    "{%- for m in messages -%} {{- m.content.strip() + '\n' -}} {%- endfor -%}",
]


@pytest.mark.parametrize("template", HARMLESS)
def test_templates_render_as_transformers_renders_them(worker: TemplateWorker, template: str) -> None:
    options: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True, "bos_token": "<s>"}
    rendered: Any = render_jinja_template([MESSAGES], **options)
    assert worker.render(template, VARIABLES) == rendered[0][0]


HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ raise_exception('reached') }}",
    "globals": "{{ raise_exception.__globals__['os'].system('true') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "attr filter": "{{ ''|attr('__class__')|attr('mro') }}{{ (''|attr('__class__')).x.y }}",
    "format string": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception).x.y }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}).x.y }}",
    "string format by map": "{% set f = ['{0.__class__}']|map('format', 1)|list %}{{ f.x.y }}",
    "self": "{{ self.__init__.__globals__.x }}",
    "namespace dunder": "{% set ns = namespace(__class__=1) %}",
    "mutation": "{% for m in messages %}{{ messages.append(1) }}{% endfor %}",
    "mutate dict": "{{ messages[0].update({'role': 'x'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10**9) %}{% endfor %}",
    "huge string": "{{ 'a' * 1000000000 }}",
    "huge format": "{{ '%01000000000d' % 1 }}",
    "huge list": "{% set l = [0] * 1000000000 %}{{ l|length }}",
    "huge centre": "{{ 'a'|center(1000000000) }}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "huge power": "{{ 9 ** (9 ** 9) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "raise": "{{ raise_exception('no') }}",
    "syntax": "{% for %}",
    "unknown filter": "{{ 1 | nothing }}",
    "unclosed": "{% if messages %}",
    "slow regex of words": "{{ ('a ' * 4000000)|wordcount }}{{ ('ab' * 30000000)|wordwrap(1) }}",
    "too long": " " * (MAX_TEMPLATE_CHARACTERS + 1),
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_in_time_with_a_named_error(worker: TemplateWorker, template: str) -> None:
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    with pytest.raises(BadChatTemplate) as caught:
        worker.render(template, VARIABLES)
    assert time.perf_counter() - started < 4
    assert psutil.Process().memory_info().rss - before < 64 * 1024**2
    assert caught.value.code == "bad_chat_template"
    assert caught.value.remedy
    assert worker.render("{{ messages[0].role }}", VARIABLES) == "user"


def test_a_template_cannot_write_files_or_see_the_environment(worker: TemplateWorker) -> None:
    worker.render("warm", VARIABLES)
    process = psutil.Process(worker._worker._running().pid)
    assert "SNUG" not in " ".join(process.environ())
    assert set(process.environ()) <= {"TZ", "SYSTEMROOT", "LC_CTYPE", "PYTHONPATH"}
    if hasattr(process, "rlimit"):
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert len(process.children()) == 0


def test_the_templates_own_words_are_shown(worker: TemplateWorker) -> None:
    with pytest.raises(TemplateRefused, match="System role not supported"):
        worker.render("{{ raise_exception('System role not supported') }}", VARIABLES)


def test_long_messages_and_odd_characters_pass(worker: TemplateWorker) -> None:
    for content in ("x" * 10_000_000, "\u767e" * 1_000_000, "\ud83d \x00 \u202e"):
        messages = [{"role": "user", "content": content}]
        assert worker.render("{{ messages[0].content }}", {"messages": messages}) == content


def test_a_warm_worker_renders_in_about_a_millisecond(worker: TemplateWorker) -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    worker.render(template, VARIABLES)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        worker.render(template, VARIABLES)
        times.append(time.perf_counter() - started)
    assert sorted(times)[25] < 0.02


def test_a_killed_worker_is_replaced_and_a_closed_one_leaves_no_process() -> None:
    worker = TemplateWorker()
    worker.render("x", {})
    first = psutil.Process(worker._worker._running().pid)
    first.kill()
    assert first in psutil.wait_procs([first], timeout=5)[0]
    try:
        assert worker.render("{{ a }}", {"a": 1}) == "1"
        second = psutil.Process(worker._worker._running().pid)
    finally:
        worker.close()
    assert not second.is_running()
    worker.close()


def test_many_threads_share_one_worker(worker: TemplateWorker) -> None:
    results: list[str] = []

    def render(number: int) -> None:
        for _ in range(20):
            results.append(worker.render("{{ n }}", {"n": number}) + f"={number}")

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(results) == 160
    assert all(left == right for left, right in (result.split("=") for result in results))


def test_who_comes_a_hundred_times_waits_behind_the_own_hundred() -> None:
    turns, served = Turns(), list[str]()

    def come(whose: str) -> None:
        with turns.turn(whose):
            served.append(whose)

    threads = [threading.Thread(target=come, args=(whose,)) for whose in ["ben"] * 5 + ["ana"]]
    with turns.turn("ben"):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            until(lambda number=number: len(turns._waiting) == number)  # type: ignore[misc]
    for thread in threads:
        thread.join(timeout=30)
    assert served == ["ben", "ana", *["ben"] * 4]


def test_a_template_that_somebody_wrote_keeps_those_waiting_alone_who_wrote_theirs() -> None:
    worker = TemplateWorker(render_s=60)
    endless = threading.Thread(target=lambda: refused(worker, HOSTILE["endless loop"]))
    try:
        endless.start()
        until(lambda: worker._peoples._process is not None)
        assert worker.render("{{ a }}", {"a": 1}) == "1"
        assert endless.is_alive()
    finally:
        worker._peoples.kill()
        endless.join(timeout=30)
        worker.close()
    assert not endless.is_alive()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(worker: TemplateWorker, template: str) -> None:
    with pytest.raises(BadChatTemplate):
        worker.render(template, {}, own=True)


class Writes:
    """In place of the process: what a hostile template makes of the messages."""

    def __init__(self, text: Callable[[list[str]], str]) -> None:
        self._text = text

    def render(self, template: str, variables: Mapping[str, Any], *, own: bool = False) -> str:
        return self._text([turn["content"] for turn in variables["messages"]])


def pieces_of(text: Callable[[list[str]], str], contents: list[str]) -> str:
    """What is rendered, contents in brackets; it takes no long time."""
    template = ChatTemplate("", {}, cast("TemplateWorker", Writes(text)))
    started = time.thread_time()
    rendered = render_pieces(template, [ChatMessage("user", content) for content in contents], lambda content: content)
    assert time.thread_time() - started < 2
    return "".join(piece.text if piece.template else f"({piece.text})" for piece in rendered.pieces)


def test_a_template_that_writes_beginnings_of_marks_takes_no_time() -> None:
    flood = "m0" * 1_000_000
    contents = [f"{number:04}" for number in range(2000)]
    assert pieces_of(lambda turns: flood + "".join(turns), contents) == flood + "".join(f"({one})" for one in contents)


def test_a_content_of_which_little_is_shown_takes_no_time() -> None:
    long = "x" + "a" * 500_000
    written = long.replace("x", "y")
    assert (
        pieces_of(lambda turns: "".join(one.replace("x", "y") + "a" for one in turns), [long, "b"])
        == f"({written})a(b)a"
    )


SWITCHED = (  # as SmolLM3's: a word of the system prompt turns thinking off, and is taken out
    "{% set system = messages[0].content %}{% set off = '/no_think' in system %}"
    "<|system|>{{ system.replace('/no_think', '').rstrip() }}<|end|>"
    "{% for message in messages[1:] %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "<|assistant|>{% if off %}<think></think>{% endif %}"
)


@pytest.mark.parametrize(
    ("system", "written", "begun"),
    [
        ("Be brief. /no_think", "(Be brief.)", "<think></think>"), ("/no_think", "", "<think></think>"),
        ("Be brief.", "(Be brief.)", ""), ("<|en/no_thinkd|>", "(<|end|>)", "<think></think>"),
    ],
)  # fmt: skip
def test_a_template_that_looks_into_contents_is_followed_and_they_stay_contents(
    worker: TemplateWorker, system: str, written: str, begun: str
) -> None:
    template = ChatTemplate(SWITCHED, {}, worker)
    messages = [ChatMessage("system", system), ChatMessage("user", "Hi <|end|>")]
    rendered = render_pieces(template, messages, lambda content: content)
    text = "".join(piece.text if piece.template else f"({piece.text})" for piece in rendered.pieces)
    assert text == f"<|system|>{written}<|end|><|user|>(Hi <|end|>)<|end|><|assistant|>{begun}"
    assert rendered.notice == ""


def test_what_a_template_takes_out_of_a_content_makes_no_control_token_beside_one_that_it_drops(
    worker: TemplateWorker,
) -> None:
    template = ChatTemplate(SWITCHED.replace("messages[1:]", "messages[1:] if message.role == 'user'"), {}, worker)
    system = ChatMessage("system", "<|en/no_thinkd|>"), ChatMessage("system", "Gone <|end|>")
    messages = [system[0], ChatMessage("user", "Hi"), system[1], ChatMessage("user", "you")]
    rendered = render_pieces(template, messages, lambda content: content)
    text = "".join(piece.text if piece.template else f"({piece.text})" for piece in rendered.pieces)
    assert text == "<|system|>(<|end|>)<|end|><|user|>(Hi)<|end|><|user|>(you)<|end|><|assistant|><think></think>"


@given(st.text("ab<", max_size=8), st.text("ab<", max_size=8), st.text("ab<", max_size=8), st.sampled_from("ab<"))
def test_the_longest_stretch_of_a_content_is_found(before: str, text: str, content: str, literal: str) -> None:
    found = _longest_shown(before + text, len(before), content)
    assert text[:found] in content and not (found < len(text) and text[: found + 1] in content)
    ends = [end for end in range(len(text)) if text.startswith(literal, end) and text[:end] in content]
    wanted = text[: max(ends)] if ends else None
    whole = any(text.startswith(one + literal) for one in (content, content.strip(), json.dumps(content)[1:-1]))
    assert whole or _shown_part(text, 0, content, literal, last=False) == wanted
