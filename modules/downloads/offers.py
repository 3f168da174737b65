"""What a repository on the hub would be on this machine, before a byte of its weights is fetched.

Its files as choices, their sizes against the disk, its licence, and the plan of the choice that is proposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modules.downloads.address import MAX_CHARS, HubAddress, read_address
from modules.downloads.choices import SAFETENSORS, Choice, best_choice, find_choice, list_choices
from modules.downloads.job import DownloadView
from modules.downloads.manager import Downloads, Hub
from modules.downloads.transfer import RESERVE_BYTES
from modules.errors import (
    BadConfig,
    BadGguf,
    BadName,
    BadSafetensors,
    Forbidden,
    ModelNotFound,
    PickleRefused,
    RemoteCodeDisabled,
    SnugError,
    UnsupportedModel,
)
from modules.key_file import read_key_file
from modules.memory.model.hub import inspect_hub, inspect_hub_gguf
from modules.memory.model.hub_client import HubClient, Listing, near_names
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.planner import PlanTable
from modules.models.manager import ModelManager
from modules.settings import Settings

TOKEN_FLAG = "--hf-token-file"  # noqa: S105 - a flag
_BLOCKS = (UnsupportedModel, RemoteCodeDisabled, PickleRefused, BadConfig, BadGguf, BadSafetensors, Forbidden)


@dataclass(frozen=True, slots=True)
class Offer:
    """A repository at a commit, with one of its `choices` looked at closer.

    `table` holds the ways to run it here; where there is none, `problem` says why. `needed_bytes` are still to come.
    """

    address: HubAddress
    listing: Listing
    choices: tuple[Choice, ...]
    choice: Choice
    goal: str
    is_here: bool
    needed_bytes: int
    free_bytes: int
    table: PlanTable | None
    problem: SnugError | None

    @property
    def lacks_bytes(self) -> int:
        """What the disk lacks for it."""
        return max(0, self.needed_bytes + RESERVE_BYTES - self.free_bytes)

    @property
    def is_blocked(self) -> bool:
        """Whether Snug could not run it, wherever, or may not fetch it: then it is not worth a try."""
        return isinstance(self.problem, _BLOCKS)


def hub_of(settings: Settings) -> Hub:
    """The hub as the flags say; a token file is read each time that it is used. Raises BadFlag for a bad one."""
    file = settings.hf_token_file
    if file is None:
        return Hub()
    read_key_file(file, TOKEN_FLAG)  # one that is not there is told at once
    return Hub(read_token=lambda: read_key_file(file, TOKEN_FLAG))


class Offers:
    """Looks at repositories, and begins downloads of what was found."""

    def __init__(self, downloads: Downloads, models: ModelManager, cache_folder: Path) -> None:
        self._downloads = downloads
        self._models = models
        self._cache = cache_folder

    def look(self, text: str, wanted: str = "") -> Offer:
        """What `text` names (see read_address), with the choice that is `wanted`, else the one that suits this machine.

        Raises BadName, ModelNotFound with names that are near, Forbidden, BadValue for a wish that nothing meets,
        PickleRefused or UnsupportedModel where there is nothing to fetch, Busy for a name that is taken, and what
        HubClient raises.
        """
        address, client, listing = self._listed(text)
        choices = list_choices(listing)
        choice = self._chosen(choices, wanted or address.wanted)
        goal, is_here = self._downloads.goal_of(listing, choice)
        table: PlanTable | None = None
        problem: SnugError | None = None
        try:
            table = self._models.plans_of(self._inspected(client, address, listing, choice))
        except SnugError as error:
            problem = error
        needed = 0 if is_here else self._downloads.needed_bytes(listing, choice, goal)
        free = self._downloads.free_bytes
        return Offer(address, listing, choices, choice, goal, is_here, needed, free, table, problem)

    def begin(self, text: str, wanted: str = "") -> DownloadView:
        """Fetch it. Raises as `look` does, and Busy where it is there already."""
        address, _, listing = self._listed(text)
        choice = self._chosen(list_choices(listing), wanted or address.wanted)
        return self._downloads.start(listing, address.revision, choice)

    def _listed(self, text: str) -> tuple[HubAddress, HubClient, Listing]:
        try:
            address = read_address(text)
        except BadName as error:
            if "/" in text:
                raise
            raise self._with_near(text[:MAX_CHARS], error) from error
        client = self._downloads.hub.client(address.name, address.revision)
        try:
            return address, client, client.listing()
        except (ModelNotFound, Forbidden) as error:
            raise self._with_near(address.name, error) from error

    def _with_near(self, name: str, error: SnugError) -> SnugError:
        """`error` with the names that the hub has instead, unless it has just this one."""
        near = near_names(name.strip(), endpoint=self._downloads.hub.endpoint, token=self._downloads.hub.read_token())
        if not near or name in near:
            return error
        return type(error)(error.message, remedy=f"Did you mean {' or '.join(near)}? {error.remedy}".strip())

    def _chosen(self, choices: tuple[Choice, ...], wanted: str) -> Choice:
        if wanted:
            return find_choice(choices, wanted)
        machine = self._models.machine()
        return best_choice(choices, max(machine.cpu.free_bytes, sum(gpu.free_bytes for gpu in machine.gpus)))

    def _inspected(self, client: HubClient, address: HubAddress, listing: Listing, choice: Choice) -> ModelSpec:
        if choice.kind != SAFETENSORS:
            return inspect_hub_gguf(client, listing, choice.files, cache_folder=self._cache)
        hub = self._downloads.hub
        return inspect_hub(
            address.name, revision=address.revision, cache_folder=self._cache, endpoint=hub.endpoint,
            token=hub.read_token(),
        )  # fmt: skip
