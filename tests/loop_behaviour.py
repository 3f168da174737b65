"""What every generation loop must do, whichever body it has: test_serial.py and test_batched.py run all of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.engine import shares
from modules.engine.base import EXIT_GPU_LOST, Degraded, Delta, Event, Prefill, Queued, Scored, TokenLogprob
from modules.engine.loops import scoring
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import LoopEngine
from modules.engine.loops.sampler import Sampled, Sampler
from modules.errors import BadValue, ContextLengthExceeded, GenerationFailed, OutOfMemory, QueueFull, TimedOut
from modules.sampling import GenerationParams
from tests.loop_rig import SHORT_TURNS, TIMEOUT_S, Ask, at_text, generated, greedy, load, pauses, plain_copy
from tests.tiny_models import tiny_model

PROMPT = "The harbour wakes before the town does. "
MIXED = (
    GenerationParams(temperature=1.3, top_k=40, repetition_penalty=1.2, seed=5, max_new_tokens=30),
    GenerationParams(temperature=0.8, min_p=0.02, dry_multiplier=0.8, seed=6, max_new_tokens=20),
    GenerationParams(temperature=1, mirostat_mode=2, presence_penalty=0.4, logprobs=2, seed=7, max_new_tokens=25),
)


def scores(ask: Ask) -> list[TokenLogprob]:
    """What a request was told of its prompt."""
    found: list[TokenLogprob] = []
    for event in ask.events:
        if isinstance(event, Scored):
            assert event.start == len(found)
            found += event.tokens
    return found


class LoopBehaviour:
    """Give `make_engine` and a fixture `models` (a folder); each test gets an `engine` on a tiny Llama."""

    def make_engine(self, loaded: LoadedModel, **options: Any) -> LoopEngine:
        """The engine under test."""
        raise NotImplementedError

    @pytest.fixture
    def loaded(self, models: Path) -> LoadedModel:
        """A model that no other test has touched."""
        return load(tiny_model("llama", models))

    @pytest.fixture
    def engine(self, loaded: LoadedModel) -> Any:
        engine = self.make_engine(loaded)
        yield engine
        engine.close()

    @pytest.fixture
    def prompt(self, loaded: LoadedModel) -> list[int]:
        ids: list[int] = loaded.tokenizer.encode(PROMPT, add_special_tokens=False)
        return ids

    def test_seeded_sampling_is_the_same_alone_and_beside_others(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int]
    ) -> None:
        alone = [Ask(f"alone {n}", prompt, params).run(engine) for n, params in enumerate(MIXED)]
        want = generated(loaded, prompt, 40)
        together = [
            Ask(f"with {n}", prompt, p, user=f"u{n}").submit(engine) for n, p in enumerate((*MIXED, greedy(40)))
        ]
        assert [ask.wait().tokens for ask in together] == [*(ask.tokens for ask in alone), want]

    def test_the_text_is_that_of_the_tokens_and_usage_and_timings_add_up(
        self, engine: LoopEngine, prompt: list[int]
    ) -> None:
        ask = Ask("1", prompt, greedy(50)).run(engine)
        raw = engine.decode(ask.tokens)
        assert ask.text == raw.rstrip("\ufffd") or ask.text == raw
        end = ask.end
        assert (end.reason, end.error) == ("length", None)
        assert (end.usage.prompt_tokens, end.usage.cached_tokens, end.usage.completion_tokens) == (len(prompt), 0, 50)
        assert end.timings.decoded_tokens == 50
        assert 0 <= end.timings.queue_s <= end.timings.first_token_s
        assert end.timings.tokens_per_s > 0

    def test_a_prompts_own_logprobs_are_those_of_a_plain_forward_however_it_is_read(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = [*prompt, *prompt]
        with torch.no_grad():
            plain = plain_copy(loaded)(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        busy = Ask("busy", prompt, greedy(60), user="bob").submit(engine)
        read: list[int] = []
        score = scoring.Scoring.score

        def watched(self: scoring.Scoring, start: int, logits: torch.Tensor) -> Scored:
            read.append(len(logits))
            return score(self, start, logits)

        monkeypatch.setattr(scoring.Scoring, "score", watched)
        for at_once in (10_000, 5, 1):
            monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * loaded.info.vocab_size * at_once)
            read.clear()
            ask = Ask(f"scored {at_once}", ids, greedy(3, logprobs=3), scored=True).run(engine)
            told = scores(ask)
            assert [token.token_id for token in told] == ids and ask.end.usage.cached_tokens == 0
            assert max(read) <= min(at_once, 16) + 2  # two rows may write beside it
            assert told[0].logprob != told[0].logprob and told[0].top == ()
            for place, token in enumerate(told[1:]):
                assert token.logprob == pytest.approx(float(plain[place, ids[place + 1]]), abs=2e-4)
                best = plain[place].topk(3)
                assert [found for found, _, _ in token.top] == best.indices.tolist()
                assert [value for _, _, value in token.top] == pytest.approx(best.values.tolist(), abs=2e-4)
            assert "".join(token.adds for token in told) == engine.decode(ids)
            assert ask.tokens == generated(loaded, ids, 3)
        assert busy.wait().tokens == generated(loaded, prompt, 60)

    def test_a_prompt_can_be_scored_without_a_reply(self, engine: LoopEngine, prompt: list[int]) -> None:
        for ids in (prompt, prompt[:1]):
            ask = Ask(f"{len(ids)}", ids, greedy(1, logprobs=1), scored=True, writes=False).run(engine)
            assert [token.token_id for token in scores(ask)] == list(ids)
            assert (ask.end.reason, ask.tokens, ask.end.usage.completion_tokens) == ("length", [], 0)
        again = Ask("again", prompt, greedy(5)).run(engine)
        assert len(again.tokens) == 5

    def test_prefill_is_told_in_stretches_before_the_first_text(self, engine: LoopEngine, prompt: list[int]) -> None:
        ask = Ask("1", prompt, greedy(3)).run(engine)
        told = [(event.done, event.total) for event in ask.events if isinstance(event, Prefill)]
        assert told == [(0, 40), (16, 40), (32, 40), (40, 40)]
        kinds = [type(event) for event in ask.events]
        assert kinds.index(Delta) > max(place for place, kind in enumerate(kinds) if kind is Prefill)

    def test_the_next_turn_does_not_read_the_conversation_again(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int]
    ) -> None:
        first = Ask("1", prompt, greedy(40)).run(engine)
        longer = [*prompt, *first.tokens, *loaded.tokenizer.encode(" And then?", add_special_tokens=False)]
        second = Ask("2", longer, greedy(40)).run(engine)
        assert second.tokens == generated(loaded, longer, 40)
        assert second.end.usage.cached_tokens >= 64

    def test_a_reply_goes_on_from_the_tokens_it_has(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int]
    ) -> None:
        want = generated(loaded, prompt, 40)
        rest = Ask("1", prompt, greedy(25), reply_ids=want[:15]).run(engine)
        assert rest.tokens == want[15:]
        assert rest.end.usage.completion_tokens == 25

    def test_stop_strings_are_found_over_token_borders_and_never_shown(
        self, engine: LoopEngine, prompt: list[int]
    ) -> None:
        whole = Ask("1", prompt, greedy(60)).run(engine).text
        place = next(n for n in range(5, len(whole) - 4) if whole.find(whole[n : n + 4]) == n)
        stop = whole[place : place + 4]
        ask = Ask("2", prompt, greedy(60, stop=(stop, "never said"))).run(engine)
        assert (ask.text, ask.end.reason) == (whole[:place], "stop")
        assert ask.end.usage.completion_tokens < 60

    def test_the_end_token_ends_the_reply_and_is_not_shown(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int]
    ) -> None:
        made = Ask("1", prompt, greedy(30)).run(engine).tokens
        last = next(n for n in range(4, 30) if made[n] not in made[:n])
        engine.close()  # a model has one engine
        other = self.make_engine(replace(loaded, eos_ids=frozenset({made[last]})))
        try:
            ask = Ask("2", prompt, greedy(30)).run(other)
            banned = Ask("3", prompt, greedy(30, ban_eos_token=True)).run(other)
        finally:
            other.close()
        assert (ask.tokens, ask.end.reason) == (made[:last], "stop")
        assert made[last] not in banned.tokens
        assert (len(banned.tokens), banned.end.reason) == (30, "length")

    def test_tokens_named_by_the_client_end_the_reply_once_it_is_long_enough(
        self, engine: LoopEngine, prompt: list[int]
    ) -> None:
        made = Ask("1", prompt, greedy(12)).run(engine).tokens
        last = next(n for n in range(4, 12) if made[n] not in made[:n])
        ends = (made[last], 10**6)
        ask = Ask("2", prompt, greedy(12, stop_token_ids=ends)).run(engine)
        assert (ask.tokens, ask.end.reason) == (made[:last], "stop")
        longer = Ask("3", prompt, greedy(12, stop_token_ids=ends, min_tokens=last + 2)).run(engine)
        assert made[last] not in longer.tokens[: last + 2] and len(longer.tokens) >= last + 2

    def test_no_half_character_is_ever_shown(self, engine: LoopEngine, prompt: list[int]) -> None:
        asks = [
            Ask(f"{seed}", prompt, GenerationParams(temperature=3, top_p=1, seed=seed, max_new_tokens=60)).submit(
                engine
            )
            for seed in range(4)
        ]
        for ask in asks:
            pieces = [event.text for event in ask.wait().events if isinstance(event, Delta)]
            assert all(piece == piece.encode("utf-8", "strict").decode() for piece in pieces)
            assert len(ask.tokens) == ask.end.usage.completion_tokens

    @pytest.mark.parametrize("where", ["before it starts", "in its prefill", "in mid-reply"])
    def test_cancel_ends_it_within_a_token_and_the_next_request_runs(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int], where: str
    ) -> None:
        seen = 0

        def cancel_at(event: Event) -> None:
            nonlocal seen
            seen += isinstance(event, Delta)
            if (where == "in its prefill" and isinstance(event, Prefill) and event.done) or seen == 3:
                engine.cancel("x")

        ask = Ask("x", prompt, greedy(400), at_event=cancel_at)
        if where == "before it starts":
            running = Ask("running", prompt, greedy(60)).submit(engine)
            ask.submit(engine)
            engine.cancel("x")
            running.wait()
        else:
            ask.submit(engine)
        assert ask.wait().end.reason == "cancelled"
        assert sum(isinstance(event, Delta) for event in ask.events) <= 4
        engine.cancel("x")
        engine.cancel("never heard of")
        assert Ask("next", prompt, greedy(10)).run(engine).tokens == generated(loaded, prompt, 10)
        assert engine.stats().active == engine.stats().queued == 0

    def test_an_exception_at_token_k_fails_that_request_only(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want = generated(loaded, prompt, 30)
        bad = Ask("bad", prompt, greedy(30, logprobs=1), user="bad")
        _fail_sampler_at(monkeypatch, token=7, of=bad.params, error=ZeroDivisionError("x"))
        good = [Ask(f"good {n}", prompt, greedy(30), user=f"u{n}").submit(engine) for n in range(2)]
        bad.run(engine)
        assert [ask.wait().tokens for ask in good] == [want, want]
        assert bad.tokens == want[:7]
        assert isinstance(bad.end.error, GenerationFailed)
        assert "ZeroDivisionError" in bad.end.error.message
        assert Ask("next", prompt, greedy(30)).run(engine).tokens == want

    def test_a_forward_that_fails_once_costs_at_most_the_request_that_ran_alone(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want = generated(loaded, prompt, 20)
        _fail_forward(monkeypatch, loaded.model, calls={6}, error=RuntimeError("a broken kernel"))
        asks = [Ask(f"{n}", prompt, greedy(20), user=f"u{n}").submit(engine) for n in range(3)]
        ends = [ask.wait().end for ask in asks]
        assert sum(end.reason == "error" for end in ends) <= 1
        assert all(ask.tokens == want for ask in asks if ask.end.reason == "length")
        assert Ask("next", prompt, greedy(20)).run(engine).tokens == want

    @pytest.fixture
    def roomy(self, models: Path) -> Any:
        """An engine that reads 64 tokens at a time, so that there is something to give up."""
        engine = self.make_engine(load(tiny_model("llama", models), prefill_chunk=64))
        yield engine
        engine.close()

    def test_memory_running_out_once_is_told_and_survived(
        self, roomy: LoopEngine, prompt: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want = generated(roomy.loaded, prompt, 20)
        _fail_forward(monkeypatch, roomy.loaded.model, calls={6}, error=torch.OutOfMemoryError("out"))
        ask = Ask("1", prompt, greedy(20)).run(roomy)
        assert (ask.tokens, ask.end.reason) == (want, "length")
        assert sum(isinstance(event, Degraded) for event in ask.events) == 1

    def test_memory_that_stays_short_ends_it_cleanly_with_its_text_kept(
        self, roomy: LoopEngine, prompt: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want = generated(roomy.loaded, prompt, 20)
        _fail_forward(monkeypatch, roomy.loaded.model, calls=set(range(6, 100)), error=torch.OutOfMemoryError("out"))
        ask = Ask("1", prompt, greedy(20)).run(roomy)
        assert isinstance(ask.end.error, OutOfMemory)
        assert ask.tokens == want[:5]
        assert ask.text == roomy.decode(want[:5]).rstrip("\ufffd")
        monkeypatch.undo()
        assert Ask("next", prompt, greedy(20)).run(roomy).tokens == want

    def test_a_lost_gpu_ends_the_process_instead_of_failing_every_request_to_come(
        self, engine: LoopEngine, prompt: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        codes: list[int] = []
        ended = threading.Event()

        def end(code: int) -> None:
            codes.append(code)
            ended.set()
            raise SystemExit  # ends the engine's thread as the process would end

        monkeypatch.setattr(os, "_exit", end)
        error = torch.AcceleratorError("an illegal memory access")
        _fail_forward(monkeypatch, engine.loaded.model, calls={6}, error=error)
        Ask("1", prompt, greedy(20)).submit(engine)
        assert ended.wait(TIMEOUT_S)
        assert codes == [EXIT_GPU_LOST]

    @pytest.mark.parametrize(("name", "form"), [("grammar", 'root ::= "a'), ("json_schema", '{"type": "strin"}')])
    def test_a_form_that_it_cannot_hold_is_refused_by_name(
        self, engine: LoopEngine, prompt: list[int], name: str, form: str
    ) -> None:
        with pytest.raises(BadValue) as caught:
            Ask("1", prompt, GenerationParams.model_validate({name: form})).submit(engine)
        assert caught.value.param == {"grammar": "grammar", "json_schema": "response_format"}[name]

    def test_rows_are_held_to_their_own_forms_beside_free_ones(self, engine: LoopEngine, prompt: list[int]) -> None:
        schema = (
            '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"], '
            '"additionalProperties": false}'
        )
        hot = {"temperature": 1.5, "max_new_tokens": 60, "seed": 3}
        asks = [
            Ask("schema", prompt, GenerationParams.model_validate(hot | {"json_schema": schema})),
            Ask("grammar", prompt, GenerationParams.model_validate(hot | {"grammar": 'root ::= "yes" | "no"'})),
            Ask("free", prompt, greedy(12)),
        ]
        for ask in asks:
            ask.submit(engine)
        assert [ask.wait().end.reason for ask in asks[:2]] == ["stop", "stop"]
        assert set(json.loads(asks[0].text)) == {"n"}
        assert asks[1].text in ("yes", "no")
        assert len(asks[2].wait().tokens) == 12

    def test_a_bias_decides_which_token_comes(self, engine: LoopEngine, prompt: list[int]) -> None:
        biased = greedy(4, logit_bias=((70, 1000.0), (10**6, 5.0)))
        assert Ask("1", prompt, biased).run(engine).tokens == [70] * 4
        banned = generated(engine.loaded, prompt, 1)[0]
        assert Ask("2", prompt, greedy(1, logit_bias=((banned, -100.0),))).run(engine).tokens != [banned]

    def test_what_cannot_run_is_refused_at_once(self, engine: LoopEngine, prompt: list[int]) -> None:
        with pytest.raises(ContextLengthExceeded, match="512"):
            Ask("1", [5] * 512, greedy(5)).submit(engine)
        with pytest.raises(ContextLengthExceeded):
            Ask("2", [5] * 500, greedy(5), reply_ids=[5] * 12).submit(engine)
        with pytest.raises(BadValue):
            Ask("3", [], greedy(5)).submit(engine)
        with pytest.raises(BadValue):
            Ask("4", [5, 100_000], greedy(5)).submit(engine)
        assert engine.stats().queued == 0

    def test_the_reply_ends_where_the_context_does(self, engine: LoopEngine) -> None:
        ask = Ask("1", [65] * 500, greedy(100)).run(engine)
        assert (len(ask.tokens), ask.end.reason) == (12, "length")

    def test_users_take_turns_are_told_their_place_and_a_full_queue_refuses(
        self, models: Path, prompt: list[int]
    ) -> None:
        # KV memory for one context of 512 tokens at 512 bytes: no two requests of 340 tokens fit.
        engine = self.make_engine(load(tiny_model("llama", models), kv_bytes=512 * 512), queue_limit=4)
        started, go_on = threading.Event(), threading.Event()
        order: list[str] = []

        def hold(event: Event) -> None:
            started.set()
            assert go_on.wait(TIMEOUT_S)

        def note(name: str) -> Callable[[Event], None]:
            def at_event(event: Event) -> None:
                if isinstance(event, Prefill) and name not in order:
                    order.append(name)
                    engine.cancel(name)

            return at_event

        try:
            first = Ask("first", prompt, greedy(300), user="zoe", at_event=hold).submit(engine)
            assert started.wait(TIMEOUT_S)
            names = ["a0", "a1", "a2", "b3"]
            queued = [Ask(name, prompt, greedy(300), user=name[0], at_event=note(name)) for name in names]
            for ask in queued:
                ask.submit(engine)
            with pytest.raises(QueueFull):
                Ask("late", prompt, greedy(2), user="a").submit(engine)  # who has a share already; another has not
            engine.cancel("first")
            go_on.set()
            for ask in (first, *queued):
                ask.wait()
        finally:
            go_on.set()
            engine.close()
        assert order == ["a0", "b3", "a1", "a2"]
        places = [event.position for event in queued[2].events if isinstance(event, Queued)]
        assert places == sorted(places, reverse=True)
        assert len(places) > 1
        assert places[-1] == 0

    def test_who_waits_too_long_for_a_turn_is_told_and_the_others_go_on(self, models: Path, prompt: list[int]) -> None:
        engine = self.make_engine(load(tiny_model("llama", models), kv_bytes=512 * 512))
        started = threading.Event()
        try:
            first = Ask("first", prompt, greedy(300), user="zoe", at_event=lambda _: started.set()).submit(engine)
            assert started.wait(TIMEOUT_S)
            late = Ask("late", prompt, greedy(300), user="ann", queue_s=0.001).submit(engine)
            patient = Ask("patient", prompt, greedy(2), user="bo", queue_s=TIMEOUT_S).submit(engine)
            end = late.wait().end
            assert end.reason == "error" and isinstance(end.error, TimedOut)
            assert "--queue-timeout" in end.error.remedy and not late.tokens
            assert not first.done.is_set(), "it ended while it waited"
            assert (first.wait().end.reason, patient.wait().end.reason) == ("length", "length")
        finally:
            engine.close()

    def test_a_reply_whose_turn_is_over_lets_others_come_and_goes_on_from_its_tokens(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No two of 500 tokens fit."""
        for name, value in SHORT_TURNS.items():
            monkeypatch.setattr(shares, name, value)
        loaded = load(tiny_model("llama", models), kv_bytes=512 * 512)
        engine = self.make_engine(loaded)
        begun = threading.Event()
        try:
            ben = Ask("ben", [66] * 300, greedy(200), user="ben", at_event=at_text(begun, pause_s=0.01)).submit(engine)
            assert begun.wait(TIMEOUT_S)
            ana = Ask("ana", [65] * 300, greedy(200), user="ana", at_event=at_text(begun, pause_s=0.01)).submit(engine)
            cleo = Ask("cleo", [67] * 10, greedy(5), user="cleo").submit(engine).wait()
            assert not (ben.done.is_set() and ana.done.is_set()), "it waited for both to end"
            assert cleo.end.reason == "length"
            assert ana.wait().tokens == generated(loaded, [65] * 300, 200)
            assert ben.wait().tokens == generated(loaded, [66] * 300, 200)
            assert pauses(ben) and ben.end.usage.prompt_tokens == 300
            assert engine.stats().active == engine.stats().queued == 0
        finally:
            engine.close()

    @pytest.mark.parametrize("by", ["cancel", "close"])
    def test_who_has_given_way_ends_when_cancelled_and_with_the_engine(
        self, by: str, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in (SHORT_TURNS | {"PATIENCE_S": TIMEOUT_S}).items():
            monkeypatch.setattr(shares, name, value)
        engine = self.make_engine(load(tiny_model("llama", models), kv_bytes=512 * 512))
        begun, gave_way = threading.Event(), threading.Event()

        def note(event: Event) -> None:
            at_text(begun, pause_s=0.01)(event)
            if pauses(ben):
                gave_way.set()

        ben = Ask("ben", [66] * 300, greedy(200), user="ben", at_event=note)
        try:
            ben.submit(engine)
            assert begun.wait(TIMEOUT_S)
            ana = Ask("ana", [65] * 300, greedy(200), user="ana", at_event=at_text(begun, pause_s=0.01)).submit(engine)
            assert gave_way.wait(TIMEOUT_S)
            if by == "cancel":
                engine.cancel("ben")
                ben.wait()
                assert not ana.done.is_set(), "it waited for the other's end"
            engine.close()
            assert [ask.wait().end.reason for ask in (ben, ana)] == ["cancelled"] * 2
            assert len(ben.tokens) == ben.end.usage.completion_tokens
        finally:
            engine.close()

    def test_close_ends_everything_as_cancelled(self, loaded: LoadedModel, prompt: list[int]) -> None:
        engine = self.make_engine(loaded)
        started = threading.Event()
        asks = [Ask(f"{n}", prompt, greedy(400), at_event=lambda _: started.set()).submit(engine) for n in range(3)]
        assert started.wait(TIMEOUT_S)
        engine.close()
        assert [ask.wait().end.reason for ask in asks] == ["cancelled"] * 3

    def test_a_listener_that_fails_ends_its_own_request_only(
        self, engine: LoopEngine, loaded: LoadedModel, prompt: list[int]
    ) -> None:
        def break_pipe(event: Event) -> None:
            if isinstance(event, Delta):
                raise BrokenPipeError

        Ask("deaf", prompt, greedy(400), at_event=break_pipe).submit(engine)
        assert Ask("next", prompt, greedy(10)).run(engine).tokens == generated(loaded, prompt, 10)


def _fail_sampler_at(monkeypatch: pytest.MonkeyPatch, *, of: GenerationParams, token: int, error: Exception) -> None:
    """The sampler of the request with the parameters `of` raises at its token number `token`."""
    taken = 0
    choose = Sampler.next

    def next_or_fail(sampler: Sampler, logits: torch.Tensor) -> Sampled:
        nonlocal taken
        if sampler._params is of:
            taken += 1
            if taken > token:
                raise error
        return choose(sampler, logits)

    monkeypatch.setattr(Sampler, "next", next_or_fail)


def _fail_forward(monkeypatch: pytest.MonkeyPatch, model: Any, *, calls: set[int], error: Exception) -> None:
    """The model raises at the forward calls with these numbers, the first one from now being 1."""
    count = 0

    layer = model.model.layers[1]  # the first one has written to the KV cache by then
    forward = layer.forward

    def forward_or_fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward_or_fail)
