"""How many ways through a form llama.cpp follows, counted beside it; and who ends where they cost others too much."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from modules.engine.base import Event, GenerationRequest
from modules.engine.llamacpp import form_costs
from modules.engine.llamacpp.form_costs import EACH_TRIES, TRIES_A_SECOND, FormCosts
from modules.engine.llamacpp.gbnf import rules_of
from modules.engine.llamacpp.gbnf_growth import Alternatives
from modules.engine.llamacpp.gbnf_stacks import Stacks
from modules.engine.llamacpp.reply import LlamaReply
from modules.engine.llamacpp.schema_grammar import checked_grammar_of
from modules.errors import BadGrammar
from modules.sampling import GenerationParams
from tests.llamacpp_rig import engine_of, plan_of
from tests.loop_rig import TIMEOUT_S, Ask
from tests.tiny_models import tiny_gguf

DEAR = "root ::= " + " | ".join(f't "x{n:03}"' for n in range(50)) + '\nt ::= [ -~] t | ""\n'
LONG_LIST = [f"value {n}" for n in range(1000)]


def ways(grammar: str, text: str) -> list[int]:
    stacks = Stacks(rules_of(grammar))
    return [len(stacks), *map(stacks.push, text)]


def whole(rules: Mapping[str, Alternatives], text: str) -> bool:
    """Whether `text` follows them to their end."""
    stacks = Stacks(rules)
    for character in text:
        before = set(stacks._now)
        stacks.push(character)
        if stacks._now == before and not any(_fits(stacks, one, character) for one in before):
            return False
    return 0 in stacks._now


def _fits(stacks: Stacks, stack: int, character: str) -> bool:
    fits = stacks._places[stacks._cells[stack][0]].fits
    return fits is not None and fits(character)


@pytest.mark.parametrize(
    ("grammar", "text", "expected"),
    [
        ('root ::= "ab" | "ac" | "b"', "ac", [3, 2, 1]),
        ('root ::= "a" "a"? "b"', "aab", [1, 2, 1, 1]),
        ('root ::= [a-c]{2,3} "d"', "abd", [1, 1, 2, 1]),
        ('root ::= "a"* "b"+ ("c" | "d"){0,2}', "abbc", [2, 2, 4, 4, 3]),
        ('root ::= "x" root "y" | "z"', "xxzyy", [2, 2, 2, 1, 1, 1]),
        (r'root ::= [^\x41-\x43\]-] [.a-] .', "Z-ü", [1, 1, 1, 1]),
        ('root ::= one | two\none ::= "a"\ntwo ::= "a"', "a", [2, 1]),
        ('root ::= "" | ""\n', "", [1]),
        ('root ::= "a"', "b", [1, 1]),
    ],
)  # fmt: skip
def test_ways_are_counted_after_each_character(grammar: str, text: str, expected: list[int]) -> None:
    assert ways(grammar, text) == expected


def test_alternatives_that_begin_alike_without_end_stay_open() -> None:
    assert ways(DEAR, "rusty") == [100] * 6


@pytest.mark.parametrize(
    "values",
    [
        LONG_LIST,
        ["", *"abcdefgh", "ab", "ü", 'q"', "\\", "\n"],
        [1, 12, 123, -1, 1.5, True, None, 10, 100],
        ["x" * n for n in range(30)],
    ],
    ids=["long", "odd", "numbers", "prefixes"],
)
def test_a_list_of_choices_leaves_few_ways_open_and_means_the_same(values: list[object]) -> None:
    grammar = checked_grammar_of(json.dumps({"enum": values}))
    rules = rules_of(grammar)
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    for text in [*texts[:30], *texts[-30:]]:
        assert whole(rules, text)
        assert max(ways(grammar, text)) <= 30
        assert whole(rules, text[:-1]) == (text[:-1] in texts), "an end where none is"
        assert whole(rules, text + "1") == (text + "1" in texts)


def test_ways_are_those_of_what_llama_cpp_writes(tmp_path: Path) -> None:
    """Everything that it writes under a grammar is a way through it, and its end an end."""
    number = random.Random(4)
    schema = {
        "type": "object",
        "properties": {
            "a": {"enum": LONG_LIST[:40]},
            "b": {"type": "array", "items": {"type": "integer", "maximum": 90}, "maxItems": 3},
            "c": {"type": "string", "pattern": "^[x-z]{1,3}(ab|cd)?$"},
        },
        "required": ["a", "c"],
    }
    grammars = [
        checked_grammar_of(json.dumps(schema)),
        'root ::= ("a" [b-d]? | [^a]{2} "e"){1,3} ";"',
        r'root ::= item ("," item)* "."' + "\n" + r'item ::= [\x30-9]{1,2} | "(" item ")"',
    ]
    with engine_of(plan_of(tiny_gguf(tmp_path, readable=True))) as engine:
        for grammar in grammars:
            for _ in range(4):
                params = GenerationParams(max_new_tokens=400, seed=number.randrange(10**6), grammar=grammar)
                ask = Ask(f"{number.random()}", [65] * 4, params).run(engine)
                assert whole(rules_of(grammar), ask.text) == (ask.end.reason == "stop")


def test_what_a_form_costs_is_made_up_for_in_time() -> None:
    now = 0.0
    costs = FormCosts(1000, lambda: now)
    costs.add("Ben", form_costs.MORE_TRIES // 1000, 0)
    assert not costs.is_too_much("Ben")
    costs.add("Ben", 1 + EACH_TRIES // 1000, 1)
    assert costs.is_too_much("Ben") and not costs.is_too_much("Ana")
    now = 2 * 1000 / TRIES_A_SECOND
    assert not costs.is_too_much("Ben")
    now = 1e6
    costs.add("Ana", 1, 0)
    assert list(costs._spent) == ["Ana"]


def test_what_was_written_of_a_form_is_counted_once(tmp_path: Path) -> None:
    """Tokens and ways of a text that came in pieces, asked for now and then, are those of the whole."""
    params = GenerationParams(max_new_tokens=99, grammar='root ::= ("ab" | "ac"){20}')
    reply = LlamaReply(
        GenerationRequest("1", "u", (65,), params), lambda _: None, lambda _: [], longest=900, grammar=params.grammar
    )
    told: list[tuple[int, float]] = []
    for number in range(20):
        reply.take([{"content": "ab" if number % 2 else "ac", "tokens": [1, 2], "tokens_predicted": 2 * number + 2}])
        if number % 3 == 1:
            told += reply.form_ways()
    told += reply.form_ways()
    assert sum(ways for ways, _ in told) == 2 + 39 * 2 + 1
    assert sum(tokens for _, tokens in told) == pytest.approx(40)
    assert list(reply.form_ways()) == []


def test_a_form_that_is_dear_at_each_token_ends_where_others_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_costs, "MORE_TRIES", 100 * 260 * 20)
    monkeypatch.setattr(form_costs, "EACH_TRIES", 1)
    monkeypatch.setattr(form_costs, "TRIES_A_SECOND", 1)
    dear = GenerationParams(max_new_tokens=100, temperature=0, grammar=DEAR)
    with engine_of(plan_of(tiny_gguf(tmp_path, readable=True, context=2048), 2048)) as engine:
        alone = Ask("alone", [65] * 4, dear, user="Ben", whose="Ben").run(engine)
        assert alone.end.reason == "length" and len(alone.tokens) == 100
        params = GenerationParams(max_new_tokens=1500, temperature=0, ban_eos_token=True)
        here, go_on = threading.Event(), threading.Event()

        def stay(_: Event) -> None:
            if len(other.events) > 5:  # its prompt is read: nobody's has to wait for that
                here.set()
                go_on.wait(TIMEOUT_S)

        other = Ask("other", [66] * 4, params, user="Ana", whose="Ana", at_event=stay)
        other.submit(engine)
        assert here.wait(TIMEOUT_S)
        longer = dear.model_copy(update={"max_new_tokens": 400})
        beside = Ask("beside", [65] * 4, longer, user="Ben", whose="Ben").run(engine)
        assert beside.end.reason == "error" and isinstance(beside.end.error, BadGrammar)
        assert 15 < len(beside.tokens) < 400
        with pytest.raises(BadGrammar, match="takes too long"):
            Ask("again", [65] * 4, dear, user="Ben", whose="Ben").submit(engine)
        sound = GenerationParams(max_new_tokens=50, temperature=0, grammar="root ::= [a-z]{50}")
        assert Ask("sound", [65] * 4, sound, user="Cleo", whose="Cleo").run(engine).end.reason in ("stop", "length")
        go_on.set()
        assert other.wait().end.reason == "length"
