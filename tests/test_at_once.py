"""Presets and characters kept by many at once: none takes another's name, none is half, none is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from modules.characters.character import Character
from modules.characters.library import Library
from modules.chat.presets import Presets
from modules.errors import BadPreset
from modules.sampling import GenerationParams

ROOT = Path(__file__).parent.parent


def at_once(count: int, act: Callable[[int], object]) -> list[object]:
    """What `act` gives in so many threads that begin together; errors are raised here."""
    begin, given = threading.Barrier(count), list[object]()

    def run(number: int) -> None:
        begin.wait(20)
        try:
            given.append(act(number))
        except BaseException as error:
            given.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(given) == count
    return given


def test_files_of_one_name_that_are_taken_in_at_once_all_get_a_name_of_their_own(tmp_path: Path) -> None:
    presets = Presets(ROOT / "presets", tmp_path / "presets")
    names = at_once(12, lambda n: presets.take_in("mine.yaml", f"top_k: {n}\n"))
    assert len(set(names)) == 12
    assert sorted(presets.get(str(name)).top_k for name in names) == list(range(12))
    characters = Library.of(ROOT / "characters", tmp_path).characters
    people = at_once(12, lambda n: characters.add(Character(name="Kim", description=f"{n}"), None))
    assert len(set(people)) == 12
    assert sorted(int(characters.get(str(ident)).description) for ident in people) == list(range(12))


def test_names_that_differ_in_case_alone_are_not_both_taken(tmp_path: Path) -> None:
    for round_number in range(20):
        folder = tmp_path / str(round_number)
        given = at_once(2, partial(save_one_of_two, Presets(ROOT / "presets", folder)))
        assert sorted(isinstance(one, BadPreset) for one in given) == [False, True]
        assert len(list(folder.iterdir())) == 1


def save_one_of_two(presets: Presets, number: int) -> None:
    presets.save(("Mine", "mine")[number], GenerationParams())


def test_a_preset_saved_by_many_at_once_is_one_of_theirs_whole(tmp_path: Path) -> None:
    presets = Presets(ROOT / "presets", tmp_path / "presets")

    def save(number: int) -> None:
        for _ in range(10):
            presets.save("mine", GenerationParams(top_k=number, stop=(f"stop {number} " * 30,)))
            seen = presets.get("mine")
            assert seen.stop == (f"stop {seen.top_k} " * 30,)

    assert at_once(8, save) == [None] * 8
    assert [path.name for path in (tmp_path / "presets").iterdir()] == ["mine.yaml"]
