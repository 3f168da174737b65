"""The fair queue: whose turn it is, where everybody stands, and when it is full."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.engine.admission import FairQueue
from modules.errors import QueueFull


def queue_of(*items: str, limit: int = 100) -> FairQueue[str]:
    """A queue of items named by their user's letter and a number."""
    queue: FairQueue[str] = FairQueue(limit)
    for item in items:
        queue.push(item[0], item)
    return queue


def drain(queue: FairQueue[str]) -> list[str]:
    """Everything, in the order served."""
    served = []
    while (item := queue.pop()) is not None:
        served.append(item)
    return served


def test_one_users_many_requests_do_not_hold_up_another_ones() -> None:
    assert drain(queue_of("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_user_who_was_served_waits_behind_those_who_were_not() -> None:
    queue = queue_of("a1", "a2", "b1")
    assert queue.pop() == "a1"
    queue.push("c", "c1")
    assert drain(queue) == ["b1", "a2", "c1"]


def test_who_is_put_first_goes_before_all_others_and_the_rest_keep_their_order() -> None:
    queue = queue_of("a1", "a2", "b1", "c1")
    assert queue.heads() == ["a1", "b1", "c1"]
    queue.put_first("c")
    assert drain(queue) == ["c1", "a1", "b1", "a2"]
    assert queue.heads() == []


def number_of(item: str) -> float:
    return int(item[1:])


def test_what_is_put_back_goes_before_its_users_others_and_behind_all_other_users() -> None:
    queue = queue_of("a1", "a2", "b1")
    first = queue.pop()
    queue.push("c", "c1")
    queue.put_back("a", first or "", number_of)
    assert drain(queue) == ["b1", "c1", "a1", "a2"]
    queue.put_back("d", "d1", number_of)
    assert drain(queue) == ["d1"]


def test_what_came_first_goes_on_first_however_often_a_later_one_of_its_user_gives_way() -> None:
    queue = queue_of("a3", "b1")
    for item in ("a1", "a2", "a2"):
        queue.remove(item)
        queue.put_back("a", item, number_of)
    assert drain(queue) == ["b1", "a1", "a2", "a3"]


def test_a_full_queue_refuses_and_stays_as_it_is() -> None:
    queue = queue_of("a1", "b1", limit=2)
    with pytest.raises(QueueFull):
        queue.push("c", "c1")
    assert drain(queue) == ["a1", "b1"]


def test_who_fills_the_line_fills_it_for_nobody_else() -> None:
    queue = queue_of(*(f"a{number}" for number in range(8)), limit=8)
    with pytest.raises(QueueFull):
        queue.push("a", "a8")
    for number in range(4):
        queue.push("b", f"b{number}")
    with pytest.raises(QueueFull):
        queue.push("b", "b4")
    queue.push("c", "c0")
    assert drain(queue)[:4] == ["a0", "b0", "c0", "a1"]


def test_a_removed_item_is_not_served_and_its_user_is_forgotten_with_the_last_one() -> None:
    queue = queue_of("a1", "b1", "b2")
    queue.remove("a1")
    queue.remove("b1")
    queue.remove("not there")
    assert drain(queue) == ["b2"]
    assert queue.peek() is None


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.integers(0, 8))
def test_the_order_told_is_the_order_served(users: list[str], served_before: int) -> None:
    queue = queue_of(*(f"{user}{number}" for number, user in enumerate(users)))
    for _ in range(served_before):
        queue.pop()
    told, first = queue.order(), queue.peek()
    assert len(queue) == len(told)
    assert drain(queue) == told
    assert first == (told[0] if told else None)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20))
def test_nobody_is_served_twice_while_another_waits_since_before(users: list[str]) -> None:
    served = drain(queue_of(*(f"{user}{number}" for number, user in enumerate(users))))
    for first, second in pairwise(served):
        if first[0] == second[0]:
            rest = served[served.index(second) :]
            assert {item[0] for item in rest} == {first[0]}
