"""POST /v1/internal/plan: every way to run a model here, or on a machine that one does not have, before any load.

What `server.py --plan --json` prints, for models in the models folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, create_model

from modules.api.schemas import loadable
from modules.api.shapes import Json
from modules.few import FewFields
from modules.memory.known_gpus import find_gpu
from modules.memory.planning.planner import longest_context
from modules.plan_command.as_json import report_json, table_json
from modules.services import Services
from modules.settings import LoadOptions
from modules.units import parse_size

MOST_GPUS = 16


def _card(text: str) -> str:
    find_gpu(text)
    return text


def _size(value: object) -> object:
    return value if value is None or value == "" else parse_size(str(value))


if TYPE_CHECKING:
    LoadableFields = FewFields
else:
    LoadableFields = create_model("PlannedFields", __base__=FewFields, **loadable())


class PlanRequest(LoadableFields):
    """The body: a model and load options as for a load; `gpu` and `ram` as --gpu and --ram imagine a machine."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    gpu: Annotated[list[Annotated[str, AfterValidator(_card)]], Field(max_length=MOST_GPUS)] = Field(
        [], description="Cards to plan for, each a name (RTX 4090) or a size (24GiB)."
    )
    ram: Annotated[Any, BeforeValidator(_size)] = Field(None, description="RAM to plan for, 64GiB for example.")

    def options(self, defaults: LoadOptions) -> LoadOptions:
        """The start-up flags, with what this request says in their place."""
        given = {name: getattr(self, name) for name in self.model_fields_set if name in LoadOptions.model_fields}
        return defaults.model_copy(update=given)


def plan_routes(services: Services) -> APIRouter:
    """The one route."""
    router = APIRouter(prefix="/v1/internal")
    models = services.models

    @router.post("/plan")
    def plan(body: PlanRequest) -> Json:
        """Every way to run it, the chosen one first; `fits` says whether there is one."""
        options = body.options(models.defaults)
        imagined = bool(body.gpu) or body.ram is not None
        cards = [find_gpu(card) for card in body.gpu]
        table = models.plans_on(options, cards, body.ram) if imagined else models.plans(options)
        longest = longest_context(table, table.chosen) if table.chosen else 0
        return report_json(table.question.inventory, [table_json(table, longest_context=longest)], imagined=imagined)

    return router
