"""The notebook on the disk: one text an owner, with every change of it as a step that can be taken back and forth.

Steps form a tree: what is written after something was taken back stands beside it as another version. The last
STEPS_KEPT are kept. What the model wrote is kept token by token beside the text. It knows no model.
"""

# ruff: noqa: S608 - only a column list is put into SQL text, never a value

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from modules.chat.database import Database
from modules.chat.packing import pack, unpack
from modules.chat.passages import (
    Run,
    Span,
    Splice,
    Tokens,
    moved,
    pack_spans,
    pack_tokens,
    splice_between,
    unpack_spans,
    unpack_tokens,
)
from modules.errors import NotFound, StaleView, StoreFailed

STEPS_KEPT = 200
VERSIONS_KEPT = 20  # beside the one on show, whatever else has to go
CHARACTERS_KEPT = 64 * 1024**2
LONGEST_BURST = 80  # characters typed on in one go that are one step
_RUNS_IN_MEMORY = 64
_STEP = "id, parent_id, next_id, kind, position, removed, added, spans, run_id"

Kind = Literal["start", "edit", "generation", "open"]


@dataclass(frozen=True, slots=True)
class Page:
    """A notebook as it stands. `revision` grows with every change; `version` of `versions` from the same place.

    `again`: the last change is a completion, so that it can be made anew. `step` names the last change, `run` what the
    model wrote in it.
    """

    text: str
    revision: int = 0
    spans: tuple[Span, ...] = ()
    undo: bool = False
    redo: bool = False
    version: int = 1
    versions: int = 1
    again: bool = False
    step: int | None = None
    run: int | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    id: int
    parent_id: int | None
    next_id: int | None
    kind: Kind
    splice: Splice
    spans: tuple[Span, ...]
    run_id: int | None


@dataclass(frozen=True, slots=True)
class _State:
    """A notebook within a transaction; `text` lacks what an open step added so far."""

    text: str
    revision: int
    head: _Step


_Road = Callable[[sqlite3.Connection, _Step], Sequence[int | None]]


class Notebooks:
    """The notebooks of all owners. Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        """Completions that a crash cut off end with the text that they had."""
        self._database = database
        self._runs: OrderedDict[int, Run] = OrderedDict()
        self._runs_lock = threading.Lock()
        with database.write() as connection:
            for (owner,) in connection.execute(
                "SELECT DISTINCT owner FROM notebook_steps WHERE kind = 'open'"
            ).fetchall():
                state = self._state(connection, unpack(owner))
                if state.head.splice.added:
                    self._close(connection, unpack(owner), state, state.head.splice.added, None)
                else:
                    self._drop_open(connection, unpack(owner), state)

    def text(self, owner: str) -> str:
        """The owner's text, "" at first."""
        return self.page(owner).text

    def page(self, owner: str) -> Page:
        """The notebook as it stands, with what a completion under way has added so far."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT content, head_id FROM notebooks WHERE owner = ?", (pack(owner),)
            ).fetchone()
            if row is None or row[1] is None:
                return Page(unpack(row[0]) if row else "")
            return self._page(connection, self._state(connection, owner))

    def run(self, owner: str, run_id: int) -> Run:
        """What the model wrote in one go. Raises NotFound where its step is gone."""
        with self._database.read() as connection:
            return self._run(connection, owner, run_id)

    def save(self, owner: str, text: str, revision: int | None = None) -> Page:
        """Keep the text as it was edited. Raises StaleView if it is not of that revision, unless it is the same text;
        without a revision it is written over whatever is there."""
        with self._database.write() as connection:
            state = self._state(connection, owner)
            if revision not in (None, state.revision) and text != state.text:
                raise _stale()
            state = self._edit(connection, owner, state, text)
            return self._page(connection, state)

    def undo(self, owner: str, revision: int) -> Page:
        """Take the last change back. Raises StaleView."""
        return self._travel(owner, revision, lambda _, head: [head.parent_id])

    def redo(self, owner: str, revision: int) -> Page:
        """Make the change again that was taken back last. Raises StaleView."""
        return self._travel(owner, revision, lambda _, head: [head.next_id])

    def turn(self, owner: str, revision: int, by: int) -> Page:
        """Show the version of the last change that stands `by` places further. Raises StaleView."""

        def road(connection: sqlite3.Connection, head: _Step) -> list[int | None]:
            versions = _versions(connection, head)
            at = versions.index(head.id) + by
            return [head.parent_id, versions[at]] if 0 <= at < len(versions) else []

        return self._travel(owner, revision, road)

    def last(self, owner: str) -> tuple[Splice, Run | None]:
        """The last change and, where it is a completion whose tokens are known, those."""
        with self._database.read() as connection:
            row = connection.execute("SELECT head_id FROM notebooks WHERE owner = ?", (pack(owner),)).fetchone()
            if row is None or row[0] is None:
                return Splice(0, "", ""), None
            head = _step(connection, row[0])
            return head.splice, None if head.run_id is None else self._run(connection, owner, head.run_id)

    def begin(self, owner: str, revision: int, text: str, at: int, removed: int) -> int:
        """Keep `text`, then begin a completion that takes the place of `removed` characters at a position of it.

        Returns the step for `journal`. Raises StaleView as `save`.
        """
        with self._database.write() as connection:
            state = self._state(connection, owner)
            if revision != state.revision and text != state.text:
                raise _stale()
            state = self._edit(connection, owner, state, text)
            return self._add(connection, owner, state, "open", Splice(at, text[at : at + removed], "")).head.id

    def journal(self, step: int, added: str) -> None:
        """Keep what a completion has added so far; it outlives the process, not a power cut."""
        with self._database.write(durable=False) as connection:
            connection.execute(
                "UPDATE notebook_steps SET added = ? WHERE id = ? AND kind = 'open'", (pack(added), step)
            )

    def finish(self, owner: str, added: str, run: Run | None) -> Page:
        """End the completion under way with all that it added; where there is none, nothing changes."""
        with self._database.write() as connection:
            state = self._state(connection, owner)
            if state.head.kind == "open":
                state = self._close(connection, owner, state, added, run)
            return self._page(connection, state)

    def abandon(self, owner: str, back_to: int | None = None) -> Page:
        """End the completion under way as if it had never begun; `back_to` is the version that it was to replace."""
        with self._database.write() as connection:
            state = self._state(connection, owner)
            if state.head.kind == "open":
                state = self._drop_open(connection, owner, state)
                if back_to is not None and _is_there(connection, back_to):
                    state = _go(connection, owner, state, back_to)
            return self._page(connection, state)

    def _drop_open(self, connection: sqlite3.Connection, owner: str, state: _State) -> _State:
        text, step = state.head.splice.take_back(state.text, added=""), state.head
        parent = _step(connection, _known(step.parent_id))
        state = _show(connection, owner, state, text, parent)
        connection.execute("DELETE FROM notebook_steps WHERE id = ?", (step.id,))
        return state

    def _travel(self, owner: str, revision: int, road: _Road) -> Page:
        with self._database.write() as connection:
            state = self._state(connection, owner)
            if revision != state.revision:
                raise _stale()
            for step_id in road(connection, state.head):
                if step_id is not None:
                    state = _go(connection, owner, state, step_id)
            return self._page(connection, state)

    def _state(self, connection: sqlite3.Connection, owner: str) -> _State:
        """The notebook; its first step is made where there is none."""
        row = connection.execute(
            "SELECT content, revision, head_id FROM notebooks WHERE owner = ?", (pack(owner),)
        ).fetchone()
        if row is not None and row[2] is not None:
            return _State(unpack(row[0]), row[1], _step(connection, row[2]))
        text = unpack(row[0]) if row else ""
        step_id = _insert(connection, owner, None, "start", Splice(0, "", ""), ())
        connection.execute(
            "INSERT INTO notebooks (owner, content, head_id) VALUES (?1, ?2, ?3)"
            " ON CONFLICT DO UPDATE SET head_id = ?3",
            (pack(owner), pack(text), step_id),
        )
        return _State(text, 0, _step(connection, step_id))

    def _page(self, connection: sqlite3.Connection, state: _State) -> Page:
        head, text, spans = state.head, state.text, state.head.spans
        if head.kind == "open":
            added = Splice(head.splice.at, "", head.splice.added)
            text, spans = added.apply(text), moved(spans, added, {})
        versions = _versions(connection, head)
        return Page(
            text=text,
            revision=state.revision,
            spans=spans,
            undo=head.parent_id is not None,
            redo=head.next_id is not None,
            version=versions.index(head.id) + 1,
            versions=len(versions),
            again=head.kind == "generation",
            step=head.id,
            run=head.run_id,
        )

    def _edit(self, connection: sqlite3.Connection, owner: str, state: _State, text: str) -> _State:
        """The text edited by hand; what is typed on at the end of the last edit belongs to that."""
        if text == state.text:
            return state
        splice, head = splice_between(state.text, text), state.head
        if not _goes_on(connection, head, splice):
            return self._add(connection, owner, state, "edit", splice)
        spans = self._moved(connection, owner, head.spans, splice)
        connection.execute(
            "UPDATE notebook_steps SET added = ?, spans = ? WHERE id = ?",
            (pack(head.splice.added + splice.added), pack_spans(spans), head.id),
        )
        return _show(connection, owner, state, text, _step(connection, head.id))

    def _add(self, connection: sqlite3.Connection, owner: str, state: _State, kind: Kind, splice: Splice) -> _State:
        spans = self._moved(connection, owner, state.head.spans, splice)
        step_id = _insert(connection, owner, state.head.id, kind, splice, spans)
        if kind != "open":
            _lead_to(connection, state.head.id, step_id)
        state = _show(connection, owner, state, splice.apply(state.text), _step(connection, step_id))
        _prune(connection, owner, step_id)
        return replace(state, head=_step(connection, step_id))

    def _close(self, connection: sqlite3.Connection, owner: str, state: _State, added: str, run: Run | None) -> _State:
        head = state.head
        written = Splice(head.splice.at, "", added)
        spans, run_id = self._moved(connection, owner, head.spans, written), None
        if run is not None:
            run_id = _insert_run(connection, owner, run)
        if run is not None and run_id is not None and run.tokens:
            length = sum(len(token.adds) for token in run.tokens)
            spans = (*spans, Span(written.at, length, run_id, 0, len(run.tokens)))
        spans = tuple(sorted(spans, key=lambda span: (span.start, span.end)))
        connection.execute(
            "UPDATE notebook_steps SET kind = 'generation', added = ?, spans = ?, run_id = ? WHERE id = ?",
            (pack(added), pack_spans(spans), run_id, head.id),
        )
        _lead_to(connection, _known(head.parent_id), head.id)
        state = _show(connection, owner, state, written.apply(state.text), _step(connection, head.id))
        _prune(connection, owner, head.id)
        return replace(state, head=_step(connection, head.id))

    def _moved(
        self, connection: sqlite3.Connection, owner: str, spans: Sequence[Span], splice: Splice
    ) -> tuple[Span, ...]:
        end = splice.at + len(splice.removed)
        touched = {span.run for span in spans if span.end > splice.at and span.start < end}
        tokens: Mapping[int, Tokens] = {run_id: self._run(connection, owner, run_id).tokens for run_id in touched}
        return moved(spans, splice, tokens)

    def _run(self, connection: sqlite3.Connection, owner: str, run_id: int) -> Run:
        row = connection.execute(
            "SELECT facts FROM notebook_runs WHERE id = ? AND owner = ?", (run_id, pack(owner))
        ).fetchone()
        if row is None:
            raise NotFound("These tokens are gone.", remedy="Their step is no longer in the history.")
        with self._runs_lock:
            if run_id in self._runs:
                self._runs.move_to_end(run_id)
                return self._runs[run_id]
        (packed,) = connection.execute("SELECT tokens FROM notebook_runs WHERE id = ?", (run_id,)).fetchone()
        run = Run(unpack_tokens(packed), **json.loads(row[0]))
        with self._runs_lock:
            self._runs[run_id] = run
            while len(self._runs) > _RUNS_IN_MEMORY:
                self._runs.popitem(last=False)
        return run


def _go(connection: sqlite3.Connection, owner: str, state: _State, step_id: int) -> _State:
    """One step back to the head's parent, or on to a child of the head."""
    head, step = state.head, _step(connection, step_id)
    if step.id == head.parent_id:
        _lead_to(connection, step.id, head.id)
        return _show(connection, owner, state, head.splice.take_back(state.text), _step(connection, step.id))
    _lead_to(connection, head.id, step.id)
    return _show(connection, owner, state, step.splice.apply(state.text), step)


def _show(connection: sqlite3.Connection, owner: str, state: _State, text: str, head: _Step) -> _State:
    connection.execute(
        "UPDATE notebooks SET content = ?, head_id = ?, revision = ? WHERE owner = ?",
        (pack(text), head.id, state.revision + 1, pack(owner)),
    )
    return _State(text, state.revision + 1, head)


def _step(connection: sqlite3.Connection, step_id: int) -> _Step:
    row = connection.execute(f"SELECT {_STEP} FROM notebook_steps WHERE id = ?", (step_id,)).fetchone()
    ident, parent_id, next_id, kind, at, removed, added, spans, run_id = row
    splice = Splice(at, unpack(removed), unpack(added))
    return _Step(ident, parent_id, next_id, kind, splice, unpack_spans(spans), run_id)


def _is_there(connection: sqlite3.Connection, step_id: int) -> bool:
    return connection.execute("SELECT 1 FROM notebook_steps WHERE id = ?", (step_id,)).fetchone() is not None


def _versions(connection: sqlite3.Connection, step: _Step) -> list[int]:
    """The steps from the same place, the oldest first."""
    if step.parent_id is None:
        return [step.id]
    found = connection.execute("SELECT id FROM notebook_steps WHERE parent_id = ? ORDER BY id", (step.parent_id,))
    return [row[0] for row in found]


def _goes_on(connection: sqlite3.Connection, head: _Step, splice: Splice) -> bool:
    """Whether a change is more of the typing that the head is."""
    last = head.splice
    if head.kind != "edit" or last.removed or splice.removed or splice.at != last.at + len(last.added):
        return False
    if len(last.added) + len(splice.added) > LONGEST_BURST or "\n" in last.added:
        return False
    return connection.execute("SELECT 1 FROM notebook_steps WHERE parent_id = ?", (head.id,)).fetchone() is None


def _insert(
    connection: sqlite3.Connection, owner: str, parent: int | None, kind: Kind, splice: Splice, spans: Sequence[Span]
) -> int:
    row = connection.execute(
        "INSERT INTO notebook_steps (owner, parent_id, kind, position, removed, added, spans)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (pack(owner), parent, kind, splice.at, pack(splice.removed), pack(splice.added), pack_spans(spans)),
    ).fetchone()
    return int(row[0])


def _insert_run(connection: sqlite3.Connection, owner: str, run: Run) -> int:
    facts = {name: value for name, value in asdict(run).items() if name != "tokens"}
    row = connection.execute(
        "INSERT INTO notebook_runs (owner, tokens, facts) VALUES (?, ?, ?) RETURNING id",
        (pack(owner), pack_tokens(run.tokens), json.dumps(facts)),
    ).fetchone()
    return int(row[0])


def _lead_to(connection: sqlite3.Connection, step_id: int, next_id: int) -> None:
    """What `redo` leads to from a step."""
    connection.execute("UPDATE notebook_steps SET next_id = ? WHERE id = ?", (next_id, step_id))


def _prune(connection: sqlite3.Connection, owner: str, head_id: int) -> None:
    """Forget the oldest steps beyond what is kept: other versions first, then where the head came from."""
    rows = connection.execute(
        "SELECT id, parent_id, length(removed) + length(added) FROM notebook_steps WHERE owner = ? ORDER BY id",
        (pack(owner),),
    ).fetchall()
    parents = {row[0]: row[1] for row in rows}
    sizes = {row[0]: row[2] for row in rows}
    road = [head_id]
    while (parent := parents[road[-1]]) is not None:
        road.append(parent)
    # Other versions of the head stay: one of them is what is being written anew.
    near = sorted(step for step in sizes if step != head_id and parents[step] == parents[head_id])[
        -min(VERSIONS_KEPT, STEPS_KEPT // 2) :
    ]
    gone: list[int] = []
    while len(sizes) > STEPS_KEPT or sum(sizes.values()) > CHARACTERS_KEPT:
        inner = {parents[step] for step in sizes}
        leaf = next((step for step in sizes if step not in inner and step not in (*road, *near)), None)
        if leaf is None and len(road) <= 2:
            break
        if leaf is None:
            leaf = road.pop()
            parents[road[-1]] = None
            sizes[road[-1]] = 0
            connection.execute(
                "UPDATE notebook_steps SET kind = 'start', parent_id = NULL, removed = '', added = '' WHERE id = ?",
                (road[-1],),
            )
        del sizes[leaf]
        gone.append(leaf)
    if gone:
        _forget(connection, owner, gone)


def _forget(connection: sqlite3.Connection, owner: str, steps: Sequence[int]) -> None:
    """Delete steps, and the runs that no step shows any more."""
    for step in steps:
        connection.execute("UPDATE notebook_steps SET next_id = NULL WHERE next_id = ?", (step,))
        connection.execute("DELETE FROM notebook_steps WHERE id = ?", (step,))
    shown = {
        span.run
        for (spans,) in connection.execute("SELECT spans FROM notebook_steps WHERE owner = ?", (pack(owner),))
        for span in unpack_spans(spans)
    }
    shown |= {row[0] for row in connection.execute("SELECT run_id FROM notebook_steps WHERE owner = ?", (pack(owner),))}
    for (run_id,) in connection.execute("SELECT id FROM notebook_runs WHERE owner = ?", (pack(owner),)).fetchall():
        if run_id not in shown:
            connection.execute("DELETE FROM notebook_runs WHERE id = ?", (run_id,))


def _known(step_id: int | None) -> int:
    """A step's parent, which every step but the first has."""
    if step_id is None:
        raise StoreFailed("The notebook's history has no beginning.", remedy="Restore a backup.")
    return step_id


def _stale() -> StaleView:
    return StaleView("The notebook was changed in another tab.", remedy="Look at it again.")
