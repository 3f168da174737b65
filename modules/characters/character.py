"""A character as a value: the fields of a character card (v3), checked; what Snug does not know is kept for export.

The names are those of the card format (github.com/kwaroran/character-card-spec-v3), so that a card's data and a
Character are the same thing. Reading files is in card.py and yaml_form.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from modules.errors import BadCharacter
from modules.few import FIRST_FAULT

MAX_ENTRIES = 10_000
MAX_GREETINGS = 100
ValueKind = TypeVar("ValueKind", bound=BaseModel)
_EXPRESSION = re.compile(r"/.+/[a-z]*")
_SIGNS = re.compile(r"[\\^$.|?*+()\[\]{}]")  # a text without them means itself as a regular expression, too


def _or(default: Any) -> BeforeValidator:
    """Cards say null for what they leave out."""
    return BeforeValidator(lambda value: default if value is None else value)


Text = Annotated[str, _or("")]
Texts = Annotated[tuple[Text, ...], FIRST_FAULT, _or(()), BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]
Switch = Annotated[bool, _or(False)]


class _Card(BaseModel):
    """Frozen; unknown fields are kept; a number where text is due is taken as text (`name: 2`)."""

    model_config = ConfigDict(frozen=True, extra="allow", coerce_numbers_to_str=True)


class LoreEntry(_Card):
    """One fact of a lorebook: put into the prompt where one of `keys` is spoken of, or always if `constant`.

    With `selective` one of `secondary_keys` must be there too. Entries stand in the order of `insertion_order`; where
    the token budget ends, those of low `priority` are left out first. `comment` is its name for people.
    """

    keys: Texts = ()
    secondary_keys: Texts = ()
    content: Text = ""
    enabled: Annotated[bool, _or(True)] = True
    constant: Switch = False
    selective: Switch = False
    case_sensitive: Switch = False
    use_regex: Switch = False
    insertion_order: Annotated[float, _or(100)] = Field(default=100.0, allow_inf_nan=False)
    priority: Annotated[float, _or(0)] = Field(default=0.0, allow_inf_nan=False)
    position: Text = ""
    comment: Text = ""

    def is_expression(self, key: str) -> bool:
        """Whether a key is a regular expression that means something else than its own text.

        SillyTavern marks every entry as `use_regex`, whatever its keys are.
        """
        return bool(_EXPRESSION.fullmatch(key.strip())) or (self.use_regex and bool(_SIGNS.search(key)))

    @property
    def plain_keys(self) -> list[str]:
        """The keys that are looked for."""
        return [key.strip() for key in self.keys if key.strip() and not self.is_expression(key)]


class Lorebook(_Card):
    """Facts that enter the prompt when they are spoken of. `scan_depth` is in messages, `token_budget` in tokens."""

    name: Text = ""
    scan_depth: int | None = Field(default=None, ge=0, le=10_000)
    token_budget: int | None = Field(default=None, ge=0, le=1_000_000)
    recursive_scanning: Switch = False
    entries: Annotated[tuple[LoreEntry, ...], FIRST_FAULT, _or(())] = Field(default=(), max_length=MAX_ENTRIES)


class Character(_Card):
    """Who the model plays. `user_name` is what it calls the user where no persona is chosen, "" for "You"."""

    name: Text = Field(min_length=1, max_length=200)
    description: Text = ""
    personality: Text = ""
    scenario: Text = ""
    first_mes: Text = ""
    alternate_greetings: Texts = Field(default=(), max_length=MAX_GREETINGS)
    mes_example: Text = ""
    system_prompt: Text = ""
    post_history_instructions: Text = ""
    creator_notes: Text = ""
    creator: Text = ""
    character_version: Text = ""
    tags: Texts = ()
    character_book: Lorebook | None = None
    user_name: Text = Field(default="", max_length=200)

    @property
    def greetings(self) -> tuple[str, ...]:
        """The first message and its alternatives, without empty ones."""
        return tuple(text for text in (self.first_mes, *self.alternate_greetings) if text.strip())

    def holds(self, words: Sequence[str]) -> bool:
        """Whether name, tags and texts hold all of these words, which are in lower case."""
        texts = (self.name, *self.tags, self.description, self.personality, self.scenario, *self.greetings,
                 self.mes_example, self.creator_notes, self.creator, self.system_prompt)  # fmt: skip
        whole = "\n".join(texts).casefold()
        return all(word in whole for word in words)

    @property
    def unused(self) -> tuple[str, ...]:
        """Sentences about what of this character Snug keeps but does not use."""
        entries = self.character_book.entries if self.character_book else ()
        regexes = sum(not entry.plain_keys and any(map(entry.is_expression, entry.keys)) for entry in entries)
        if not regexes:
            return ()
        return (f"{regexes} of {len(entries)} lorebook entries match by regular expressions, which Snug does not run.",)


class Persona(_Card):
    """Who the user is, as characters are told."""

    name: Text = Field(min_length=1, max_length=200)
    description: Text = Field(default="", max_length=100_000)


def holds_more_values(values: object, most: int) -> bool:
    """Whether lists and fields in `values` hold more than `most` in all, however they lie in one another."""
    inside: list[object] = [values]
    count = 0
    while inside and count <= most:
        value = inside.pop()
        held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(held)
        inside.extend(held)
    return count > most


def checked(kind: type[ValueKind], values: object, where: str) -> ValueKind:
    """`values` as a `kind`. Raises BadCharacter naming `where` and the field."""
    if not isinstance(values, dict):
        raise BadCharacter(f"{where} does not hold fields with values.", remedy="Is this a character file?")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part)[:60] for part in first["loc"])
        if field == "name" and not values.get("name"):
            raise BadCharacter(f"{where} gives no name.", remedy="Give it one.", param="name") from error
        problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise BadCharacter(
            f"{where} cannot be used: {field} is {str(first['input'])[:60]!r}; {problem}.",
            remedy="Correct that field.",
            param=field,
        ) from error
