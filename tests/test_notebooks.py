"""The notebook's history on the disk: every change can be taken back and forth, whatever happens in between."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.chat import notebooks as module
from modules.chat.notebooks import Notebooks, Page
from modules.chat.passages import Run, Token
from modules.chat.store import Store
from modules.errors import NotFound, StaleView


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "snug.db")) as opened:
        yield opened


@pytest.fixture
def kept(store: Store) -> Notebooks:
    return store.notebooks


def run_of(*adds: str) -> Run:
    return Run(tuple(Token(n, text, text, -0.5, ((n, text, -0.5),)) for n, text in enumerate(adds)), "tiny", 260)


def generate(kept: Notebooks, *adds: str, owner: str = "") -> Page:
    """A completion at the end."""
    page = kept.page(owner)
    kept.begin(owner, page.revision, page.text, len(page.text), 0)
    return kept.finish(owner, "".join(adds), run_of(*adds))


def test_edits_and_completions_are_taken_back_and_made_again(kept: Notebooks) -> None:
    kept.save("", "Once")
    generate(kept, " upon", " a time")
    page = kept.save("", "Twice upon a time")
    seen = []
    while page.undo:
        page = kept.undo("", page.revision)
        seen.append(page.text)
    assert seen == ["Once upon a time", "Once", ""]
    while page.redo:
        page = kept.redo("", page.revision)
        seen.append(page.text)
    assert seen[3:] == ["Once", "Once upon a time", "Twice upon a time"]
    assert kept.undo("", kept.undo("", page.revision).revision).spans == ()
    assert kept.redo("", kept.page("").revision).spans[0].length == len(" upon a time")


def test_typing_on_is_one_step_and_a_new_line_ends_it(kept: Notebooks) -> None:
    for text in ("On", "Once", "Once\n", "Once\nmore"):
        page = kept.save("", text)
    assert kept.undo("", page.revision).text == "Once\n"


def test_what_is_written_after_an_undo_stands_beside_what_was_undone(kept: Notebooks) -> None:
    kept.save("", "Once")
    first = generate(kept, " a")
    kept.undo("", first.revision)
    second = generate(kept, " b")
    assert (second.text, second.version, second.versions) == ("Once b", 2, 2)
    back = kept.turn("", second.revision, -1)
    assert (back.text, back.version, back.spans[0].length) == ("Once a", 1, 2)
    assert kept.turn("", back.revision, -1) == back
    assert kept.turn("", back.revision, 1).text == "Once b"


def test_a_page_that_looks_at_an_older_notebook_changes_nothing(kept: Notebooks) -> None:
    old = kept.save("", "Mine")
    new = kept.save("", "Theirs", old.revision)
    with pytest.raises(StaleView):
        kept.save("", "Mine again", old.revision)
    with pytest.raises(StaleView):
        kept.undo("", old.revision)
    with pytest.raises(StaleView):
        kept.begin("", old.revision, "Mine again", 0, 0)
    assert kept.save("", "Theirs", old.revision) == new


def test_a_completion_that_came_to_nothing_leaves_the_text_and_the_history_as_they_were(kept: Notebooks) -> None:
    kept.save("", "Once upon")
    page = kept.save("", "Once")
    page = kept.undo("", page.revision)
    kept.begin("", page.revision, page.text, 4, 5)
    assert kept.text("") == "Once"
    after = kept.abandon("")
    assert (after.text, after.undo, after.redo) == ("Once upon", True, True)
    page = generate(kept, " a")
    before = kept.undo("", page.revision)
    kept.begin("", before.revision, before.text, len(before.text), 0)
    assert kept.abandon("", page.step).text == "Once upon a"


@pytest.mark.parametrize("written", ["", " the"])
def test_a_crash_in_the_midst_of_a_completion_loses_nothing_that_was_kept(tmp_path: Path, written: str) -> None:
    with closing(Store(tmp_path / "snug.db")) as store:
        page = store.notebooks.save("", "Over rainbow")
        step = store.notebooks.begin("", page.revision, page.text, 4, 0)
        store.notebooks.journal(step, written)
        assert store.notebooks.text("") == f"Over{written} rainbow"
        shutil.copytree(tmp_path, tmp_path / "crashed")
    with closing(Store(tmp_path / "crashed" / "snug.db")) as store:
        page = store.notebooks.page("")
        assert page.text == f"Over{written} rainbow"
        assert store.notebooks.save("", f"> {page.text}").text == f"> Over{written} rainbow"
        assert store.notebooks.undo("", store.notebooks.page("").revision).text == f"Over{written} rainbow"


def test_the_history_outlives_the_server(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "snug.db")) as store:
        store.notebooks.save("", "Once")
        generate(store.notebooks, " upon")
    with closing(Store(tmp_path / "snug.db")) as store:
        page = store.notebooks.page("")
        assert page.run is not None
        assert store.notebooks.run("", page.run) == run_of(" upon")
        assert store.notebooks.undo("", page.revision).text == "Once"


def test_the_history_is_bounded_and_what_it_forgot_is_gone_from_the_file(
    kept: Notebooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS_KEPT", 6)
    kept.save("", "0")
    first = generate(kept, "a").run
    assert first is not None
    for number in range(1, 12):
        page = kept.save("", f"{number}" * number)
    undone = 0
    while page.undo:
        page = kept.undo("", page.revision)
        undone += 1
    assert undone == 5
    with pytest.raises(NotFound):
        kept.run("", first)


def test_other_versions_are_forgotten_before_the_road_to_what_is_shown(
    kept: Notebooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS_KEPT", 5)
    kept.save("", "Once")
    for number in range(6):
        page = generate(kept, f" {number}")
        if number < 5:
            kept.undo("", page.revision)
    assert (page.text, page.versions) == ("Once 5", 3)
    assert kept.undo("", page.revision).text == "Once"


def test_a_giant_text_does_not_take_the_last_step_from_the_history(
    kept: Notebooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHARACTERS_KEPT", 10)
    kept.save("", "small")
    page = kept.save("", "giant " * 100)
    assert kept.undo("", page.revision).text == "small"


def test_another_owner_sees_nothing_of_it(kept: Notebooks) -> None:
    kept.save("ann", "mine")
    run = generate(kept, " too", owner="ann").run
    assert run is not None
    assert kept.page("bob") == Page("")
    with pytest.raises(NotFound):
        kept.run("bob", run)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.text("ab \n", max_size=6)),
        st.tuples(st.sampled_from(["undo", "redo", "back", "forth", "fail"]), st.just("")),
        st.tuples(st.just("write"), st.sampled_from(["x", "yz", ""])),
    ),
    max_size=25,
)


@given(steps, st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_one_does_undo_and_redo_agree_and_tokens_say_what_stands_there(
    kept: Notebooks, moves: list[tuple[str, str]], data: st.DataObject
) -> None:
    owner = data.draw(st.uuids()).hex
    page = kept.save(owner, "start")
    for move, text in moves:
        if move == "save":
            page = kept.save(owner, text, page.revision)
        elif move in ("write", "fail"):
            at = data.draw(st.integers(0, len(page.text)))
            kept.begin(owner, page.revision, page.text, at, data.draw(st.integers(0, len(page.text) - at)))
            page = kept.finish(owner, text, run_of(*text)) if move == "write" else kept.abandon(owner)
        elif move in ("undo", "redo"):
            page = getattr(kept, move)(owner, page.revision)
        else:
            page = kept.turn(owner, page.revision, 1 if move == "forth" else -1)
        for span in page.spans:
            tokens = kept.run(owner, span.run).tokens[span.first : span.last]
            assert page.text[span.start : span.end] == "".join(token.adds for token in tokens)
        if page.undo:
            back = kept.undo(owner, page.revision)
            again = kept.redo(owner, back.revision)
            assert (again.text, again.spans) == (page.text, page.spans)
            page = again


def test_a_version_that_is_written_anew_stays_however_long_the_history(
    kept: Notebooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS_KEPT", 5)
    page = kept.page("")
    for number in range(8):
        page = kept.save("", f"{page.text}line {number}\n")
    page = generate(kept, " the first")
    old = page.step
    before = kept.undo("", page.revision)
    kept.begin("", before.revision, before.text, len(before.text), 0)
    assert kept.abandon("", old).text == page.text
    before = kept.undo("", kept.page("").revision)
    kept.begin("", before.revision, before.text, len(before.text), 0)
    page = kept.finish("", " the second", run_of(" the second"))
    assert page.versions == 2
    assert kept.turn("", page.revision, -1).text.endswith(" the first")
