"""Who gives way where KV memory runs short: bookkeeping alone, with units of a token and a clock of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from modules.engine.shares import AHEAD_TOKENS, LEAST_TURN_S, PATIENCE_S, READINGS_A_TURN, Shares, following
from modules.engine.telling import Telling


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shares_of(*rows: tuple[str, str, int, int]) -> tuple[Shares, Clock]:
    clock = Clock()
    shares = Shares(lambda tokens: tokens, clock)
    for row in rows:
        shares.put(*row)
    return shares, clock


def test_a_row_is_promised_what_it_may_soon_hold_and_never_more_than_it_can() -> None:
    shares, _ = shares_of(("a", "ann", 100, 8000), ("b", "bo", 100, 120))
    assert shares.reserved == 100 + AHEAD_TOKENS + 120
    assert not shares.grow("a", 100 + AHEAD_TOKENS)
    assert shares.grow("a", 101 + AHEAD_TOKENS)
    assert not shares.grow("b", 500)
    assert shares.reserved == 101 + 2 * AHEAD_TOKENS + 120
    shares.remove("a")
    assert shares.reserved == 120


def test_the_newest_row_of_who_is_promised_most_gives_way() -> None:
    shares, _ = shares_of(("b1", "bo", 900, 900), ("a1", "ann", 1000, 1000), ("b2", "bo", 200, 200))
    assert shares.gives_way() == "b2"
    shares.remove("b2")
    assert shares.gives_way() == "a1"


def test_as_many_rows_give_way_as_are_in_excess_those_that_go_already_counted() -> None:
    rows = [(f"{user}{n}", user, 400, 400) for n in range(2) for user in ("ann", "bo")]
    shares, _ = shares_of(*rows)
    assert shares.in_excess(1600, []) == []
    assert shares.in_excess(1000, []) == ["bo1", "ann1"]
    assert shares.in_excess(1000, ["bo1"]) == ["ann1"]
    assert shares.in_excess(1000, ["bo1", "ann1", "gone"]) == []
    assert shares.in_excess(0, []) == ["bo1", "ann1", "bo0"], "one stays"
    stays, _ = shares_of(("a", "ann", 400, 400))
    for row in ("b", "c"):
        stays.put(row, "bo", 400, 400, stays=True)
    assert stays.in_excess(0, []) == ["a"]


def test_rows_give_way_to_who_waits_once_their_turn_is_over() -> None:
    shares, clock = shares_of(("b1", "bo", 4000, 8000), ("b2", "bo", 1000, 8000), ("c", "cleo", 1000, 8000))
    for row in ("b1", "b2", "c"):
        shares.writes(row)
    limits = 8000, 8
    clock.now = LEAST_TURN_S - 0.1
    assert shares.over("ann", 2000, *limits) == []
    clock.now = LEAST_TURN_S
    assert shares.over("ann", 2000, *limits) == ["b2"], "no more of them than are in the way"
    assert shares.over("ann", 7000, *limits) == ["b2", "b1", "c"]
    assert shares.over("ann", 8001, *limits) == [], "it has no room with all of them gone either"
    assert shares.over("cleo", 2000, *limits) == [], "who has a row waits for their own"
    assert shares.over("ann", 0, 8000, 3) == ["b2"], "rows are scarce too"


def test_a_row_that_could_not_go_on_later_is_promised_all_and_stays() -> None:
    shares, clock = shares_of(("a", "ann", 100, 3000))
    shares.put("b", "bo", 100, 8000, stays=True)
    assert shares.needs(100, 8000, stays=True) == 8000
    assert shares.reserved == 8000 + 100 + AHEAD_TOKENS
    assert shares.gives_way() == "a"
    for row in ("a", "b"):
        shares.writes(row)
    clock.now = LEAST_TURN_S
    assert shares.over("cleo", 2000, 10_000, 8) == ["a"]
    assert shares.over("cleo", 3000, 10_000, 8) == []


def test_a_turn_lasts_as_long_as_what_was_read_for_it_is_worth() -> None:
    shares, clock = shares_of(("b", "bo", 8000, 8000))
    assert shares.reads("b")
    clock.now = 100.0
    limits = 8000, 8
    assert shares.over("ann", 1000, *limits) == [], "its text is read yet"
    shares.writes("b")
    assert not shares.reads("b")
    clock.now += READINGS_A_TURN * 100 - 1
    shares.writes("b")  # tells nothing new
    assert shares.over("ann", 1000, *limits) == []
    clock.now += 1
    assert shares.over("ann", 1000, *limits) == ["b"]


@dataclass
class Waiting:
    """What `following` sees of a reply."""

    user: str
    needs: int
    waiting_s: float = 0.0

    @property
    def request(self) -> Waiting:
        return self


def next_of(*heads: Waiting, free: int, way: Sequence[str] = ()) -> tuple[str, Sequence[str]] | None:
    shares, _ = shares_of(("b", "bo", 100, 100))
    came = following(cast("list[Telling]", heads), shares, lambda one: cast(Any, one).needs <= free, lambda _: way)
    return (came[0].request.user, came[1]) if came else None


def test_the_first_who_fits_comes_in_and_who_does_not_lets_others_pass_for_a_while() -> None:
    large, small = Waiting("ann", 900), Waiting("cleo", 10)
    assert next_of(small, Waiting("dan", 5), free=100) == ("cleo", ())
    assert next_of(large, small, free=100) == ("cleo", ())
    assert next_of(large, small, free=100, way=["b"]) == ("ann", ["b"])
    assert next_of(replace(large, waiting_s=PATIENCE_S), small, free=100) is None
    assert next_of(large, free=100) is None
    assert next_of(free=100) is None


def test_who_has_a_row_lets_others_pass_for_as_long_as_it_runs() -> None:
    large, small = Waiting("bo", 900, waiting_s=10 * PATIENCE_S), Waiting("cleo", 10)
    assert next_of(large, small, free=100, way=["b"]) == ("cleo", ())
    assert next_of(large, free=100, way=["b"]) is None
