"""The table of ways: what each gains and costs, and that taking one asks for exactly it."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest

from modules.errors import SnugError
from modules.settings import LoadOptions
from modules.ui.ways import SHOWN, cost_text, options_of, reasons_html, spare_bytes, ways_html
from modules.units import format_size
from tests.plan_cases import ALL_WAYS, FOUR_BIT, OFFLOADED, ON_GPU, ONE_GPU, SPREAD, TOO_LARGE, TWO_GPUS, table


def test_each_way_has_a_row_with_room_speed_and_cost_and_the_one_on_show_is_marked() -> None:
    page = ways_html(ALL_WAYS, ON_GPU, narrowed=False)
    assert page.count('role="row"') == 1 + len(ALL_WAYS.plans)
    assert page.count("way taken") == 1
    for part in ("8-bit on the GPU", "31–44", "2 to 7 % of quality", "lacks 5.96 GiB", "quantizes 2.9 % of this model"):
        assert part in page
    assert "Let Snug choose" not in page
    assert "Let Snug choose" in ways_html(ALL_WAYS, ON_GPU, narrowed=True)


def test_a_way_that_only_the_options_ask_for_heads_the_table() -> None:
    page = ways_html(table(ON_GPU), FOUR_BIT, narrowed=True)
    assert page.index("4-bit (nf4") < page.index("8-bit on")


def test_many_ways_are_folded() -> None:
    page = ways_html(table(*[ON_GPU] * (SHOWN + 3)), None, narrowed=False)
    assert "3 more</summary>" in page


def test_taking_a_way_asks_for_its_flags() -> None:
    page = ways_html(ALL_WAYS, ON_GPU, narrowed=False)
    taken = [json.loads(unescape(flags)) for flags in re.findall(r'data-take="([^"]*)"', page)]
    assert taken == [list(plan.flags) for plan in (FOUR_BIT, OFFLOADED, TOO_LARGE)]
    base = LoadOptions.model_validate({"model": "m", "ctx_size": 4096, "load_in_8bit": True})
    assert options_of(taken[0], base) == LoadOptions.model_validate(
        {"model": "m", "ctx_size": 4096, "load_in_4bit": True, "use_double_quant": True}
    )
    assert options_of((), base) == LoadOptions.model_validate({"model": "m", "ctx_size": 4096})
    assert options_of(["--ctx-size", "512"], base).ctx_size == 512


def test_flags_that_are_none_are_refused() -> None:
    with pytest.raises(SnugError):
        options_of(["--ctx-size", "many"], LoadOptions.model_validate({"model": "m"}))


@pytest.mark.parametrize("flag", ["--help", "-h", "-hh"])
def test_a_request_for_help_does_not_end_the_server(flag: str) -> None:
    with pytest.raises(SnugError, match="not a way to load"):
        options_of([flag], LoadOptions.model_validate({"model": "m"}))


def test_a_way_fits_by_what_stays_free_on_its_fullest_device() -> None:
    assert format_size(spare_bytes(SPREAD, TWO_GPUS)) == "594 MiB"
    assert spare_bytes(ON_GPU, ONE_GPU) == ONE_GPU.gpus[0].free_bytes - ON_GPU.budgets["cuda:0"].total


def test_costs_are_told_in_words() -> None:
    assert cost_text(OFFLOADED, ALL_WAYS) == "nothing"
    assert cost_text(ON_GPU, ALL_WAYS) == "under 1 % of quality"
    assert cost_text(SPREAD, table(SPREAD)) == "reads 82.6 GiB from disk for each token"
    assert cost_text(TOO_LARGE, ALL_WAYS) == ""


def test_speeds_below_a_token_in_ten_seconds_are_told_by_the_token() -> None:
    assert '<span class="way-speed worded" role="cell">50–83 s each</span>' in ways_html(
        table(SPREAD, inventory=TWO_GPUS), SPREAD, narrowed=False
    )


def test_reasons_are_listed_as_text() -> None:
    assert reasons_html(ON_GPU).count("<li>") == 2
