"""The Compare tab: one prompt, two or three columns, and how far they agree. Nothing is decided here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import gradio as gr
from anyio import to_thread
from pydantic import Field

from modules.accounts.person import Person
from modules.compare import report
from modules.compare.arranging import arrange
from modules.compare.offers import Offer, base_options, offers
from modules.compare.runner import Comparison, Comparisons
from modules.compare.values import LEAST_COLUMNS, MOST_COLUMNS, MOST_NEW_TOKENS, Asked, Trial, View
from modules.errors import BadValue, NotFound
from modules.few import FIRST_FAULT
from modules.sampling import GenerationParams
from modules.services import Services
from modules.ui.views import Json, printable, problem_view
from modules.ui.ways import FOLDERS, options_of
from modules.ui.widgets import Body, Nothing, door, owner_of, personal_door, scripted
from modules.ui.words import told

LOOKS_PER_S = 10
HEARTBEAT = 5  # looks without news, after which one is sent all the same: a page that is gone is noticed by that
MAX_PROMPT = 400_000
USUAL_TOKENS = 1024
Word = Annotated[str, Field(max_length=500)]


class ColumnBody(Body):
    """One column: a model, its flags (None: as it is, or as Snug chooses), and whose parameters count."""

    model: str = Field(max_length=500)
    flags: Annotated[tuple[Word, ...], FIRST_FAULT] | None = Field(default=None, max_length=40)
    kind: Literal["greedy", "mine", "preset"] = "greedy"
    preset: str = Field(default="", max_length=200)


class Ask(Body):
    """A comparison, or what one would be."""

    prompt: str = Field(default="", max_length=MAX_PROMPT)
    columns: Annotated[tuple[ColumnBody, ...], FIRST_FAULT] = Field(min_length=LEAST_COLUMNS, max_length=MOST_COLUMNS)
    max_new_tokens: int = Field(default=128, ge=1, le=MOST_NEW_TOKENS)
    in_turn: bool = False
    params: GenerationParams = GenerationParams()


class ModelBody(Body):
    model: str = Field(max_length=500)


class CompareDoors:
    """What the page may ask for; every answer is JSON for static/compare.js."""

    def __init__(self, services: Services) -> None:
        self.models, self.presets = services.models, services.presets
        self.comparisons = Comparisons(services.models, services.prompts)

    def choices(self, owner: str, _: Nothing) -> Json:
        """What columns can be made of, and the comparison that runs or ran last."""
        last, loaded = self.comparisons.last(owner), self.models.state.plan
        return {
            "models": [entry.name for entry in self.models.list() if not entry.problem],
            "loaded": loaded.spec.name if loaded else "",
            "presets": self.presets.whose(owner).names(),
            "comparison": comparison_view(last.view()) if last else None,
        }

    def ways(self, _: str, body: ModelBody) -> Json:
        """The precisions that the planner says are possible for a model here."""
        return {"ways": [_offer_view(offer) for offer in offers(self.models, body.model, tokens=USUAL_TOKENS)]}

    def foresee(self, person: Person, body: Ask) -> Json:
        """How a comparison would run, before anything is loaded."""
        trial = self._trial(person.owner, body)
        if not person.admin:
            trial = replace(trial, columns=tuple(map(self._in_known_folders, trial.columns)))
        found = arrange(self.models, trial)
        refused = {str(number): problem_view(error) for number, error in found.refused.items()}
        return {"words": [told(sentence) for sentence in found.words], "refused": refused}

    def begin(self, owner: str, body: Ask) -> Json:
        """Start a comparison."""
        if not body.prompt.strip():
            raise BadValue("There is no prompt.", remedy="Write what every column is to answer.", param="prompt")
        return {"comparison": comparison_view(self.comparisons.start(owner, self._trial(owner, body)).view())}

    def halt(self, owner: str, _: Nothing) -> Json:
        """Stop the comparison; what the columns hold stays."""
        if last := self.comparisons.last(owner):
            last.stop()
        return {}

    def markdown(self, owner: str, _: Nothing) -> Json:
        """The last comparison as Markdown."""
        last = self.comparisons.last(owner)
        if last is None:
            raise NotFound("There is no comparison to write down.", remedy="Make one first.")
        return {"text": printable(report.as_markdown(last.view())), "name": "comparison.md"}

    async def follow(self, request: gr.Request) -> AsyncIterator[Json]:
        """The comparison, from now to its end; `beat` tells equal looks apart."""
        last = self.comparisons.last(owner_of(request))
        if last is None:
            yield {"gone": True}
            return
        with last.watched():
            beat = 0
            async for view in _looks(last):
                beat += 1
                yield await to_thread.run_sync(partial(comparison_view, view)) | {"beat": beat}

    def _in_known_folders(self, asked: Asked) -> Asked:
        usual = {name: getattr(self.models.defaults, name) for name in FOLDERS}
        return replace(asked, options=asked.options.model_copy(update=usual))

    def _trial(self, owner: str, body: Ask) -> Trial:
        columns = tuple(self._asked(owner, column, body.params) for column in body.columns)
        return Trial(body.prompt, columns, body.max_new_tokens, secrets.randbelow(2**31), body.in_turn)

    def _asked(self, owner: str, column: ColumnBody, params: GenerationParams) -> Asked:
        """A column as it is asked for. Raises BadValue for flags that are none, NotFound for a preset that is gone."""
        base = base_options(self.models.defaults, column.model)
        options = options_of(column.flags, base) if column.flags else base
        options = options.model_copy(update={"kv_cache": base.kv_cache} if options.kv_cache == "auto" else {})
        if column.kind == "preset":
            return Asked(
                column.model, column.flags, options, column.preset, self.presets.whose(owner).get(column.preset)
            )
        if column.kind == "mine":
            return Asked(column.model, column.flags, options, "your parameters", params)
        return Asked(column.model, column.flags, options, "greedy", GenerationParams(temperature=0.0, top_p=1.0))


async def _looks(comparison: Comparison) -> AsyncIterator[View]:
    """Views until the finished one: the changed ones, and now and then an unchanged one."""
    before: View | None = None
    quiet = 0
    while True:
        view = comparison.view()
        quiet = quiet + 1 if view == before else 0
        if before is None or not quiet or quiet >= HEARTBEAT:
            quiet = 0
            yield view
        if view.finished:
            return
        before = view
        await asyncio.sleep(1 / LOOKS_PER_S)


def comparison_view(view: View) -> Json:
    """One look at a comparison, as static/compare.js draws it."""
    return {
        "id": view.id,
        "prompt": printable(view.trial.prompt),
        "words": [told(printable(sentence)) for sentence in view.words],
        "phase": told(view.phase),
        "finished": view.finished,
        "problem": problem_view(view.problem) if view.problem else None,
        "columns": [_column_view(view, number) for number in range(len(view.columns))],
    }


def _column_view(view: View, number: int) -> Json:
    column, asked = view.columns[number], view.trial.columns[number]
    return {
        "title": printable(column.model),
        "flags": None if asked.flags is None else list(asked.flags),
        "sampling": printable(asked.sampling),
        "about": " · ".join(told(part) for part in (column.way, column.sampling) if part),
        "stage": column.stage,
        "words": told(report.stage_words(column)),
        "fraction": column.progress.fraction if column.progress else 0.0,
        "note": told(column.note),
        "facts": [[told(part) for part in fact] for fact in report.facts(view, number)],
        "pieces": [
            {"text": printable(piece.text), "others": list(piece.others)} for piece in report.pieces(view, number)
        ],
        "problem": problem_view(column.error) if column.error else None,
    }


def _offer_view(offer: Offer) -> Json:
    return {
        "title": told(offer.title),
        "flags": None if offer.flags is None else list(offer.flags),
        "possible": offer.possible,
        "why": told(offer.why),
    }


def build(services: Services) -> None:
    """Put the tab's content here."""
    doors = CompareDoors(services)
    scripted(
        "snug.mountCompare",
        door(Nothing, "choices", doors.choices),
        door(ModelBody, "ways", doors.ways),
        personal_door(Ask, "foresee", doors.foresee),
        door(Ask, "begin", doors.begin, admin="Comparing models, which loads them,"),
        door(Nothing, "halt", doors.halt, admin="Stopping a comparison"),
        door(Nothing, "markdown", doors.markdown),
        follow=doors.follow,
        show="snug.onCompareLive",
    )
