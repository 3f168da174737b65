"""The picture of a plan: its stretches sum up, lie where they belong, and say their numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.engine.base import EngineStats
from modules.memory.forecasting.budget import PURPOSE_TITLES, Budget, Figure, Purpose
from modules.memory.planning.planner import Plan, Question, list_plans
from modules.plan_command.as_json import table_json
from modules.settings import LoadOptions
from modules.ui.plan_picture import bars_html, plan_html, ratio, speed_text
from modules.ui.plan_values import Bar, Measured, bars_of, capital, measured_by_device
from modules.units import GiB, MiB
from tests import plan_cases
from tests.fakes import Script, ScriptedEngine, fake_plan
from tests.plan_cases import NO_GPU, ON_GPU, ONE_GPU, REFUSAL, SMALL, SPREAD, TOO_LARGE, TWO_GPUS, budget, device
from tests.shapes import llama, machine

CASES = [(SMALL, NO_GPU), (ON_GPU, ONE_GPU), (SPREAD, TWO_GPUS), (TOO_LARGE, ONE_GPU), (plan_cases.LOADING, NO_GPU)]
PURPOSES = st.dictionaries(st.sampled_from(list(PURPOSE_TITLES)), st.floats(0.001, 200), min_size=1)


def drawn(plan: Plan, **changes: object) -> str:
    """The picture of `plan` on its machine."""
    inventory = next(machine for known, machine in CASES if known.title == plan.title)
    settled = {"fits_tokens": 23552, "context_chosen": True, **changes}
    return plan_html(plan, inventory, **settled)  # type: ignore[arg-type]


def stretches(page: str, kind: str) -> list[tuple[float, float]]:
    """(left, width) in percent of every element of class `kind`."""
    found = re.findall(rf'class="{kind}[^"]*" style="left:([\d.]+)%;width:([\d.]+)%"', page)
    return [(float(left), float(width)) for left, width in found]


@pytest.mark.parametrize(("plan", "inventory"), CASES)
def test_the_stretches_of_every_bar_follow_each_other_and_sum_to_the_forecast(plan: Plan, inventory: object) -> None:
    for bar in bars_of(plan, inventory):  # type: ignore[arg-type]
        end = 0
        for part in bar.parts():
            assert part.start == end
            end += part.bytes
        assert end == bar.budget.total


def test_each_device_that_holds_something_has_a_bar_gpus_first_disk_last() -> None:
    assert [bar.device.id for bar in bars_of(SPREAD, TWO_GPUS)] == ["cuda:0", "cuda:1", "cpu", "disk"]
    assert [bar.device.id for bar in bars_of(TOO_LARGE, ONE_GPU)] == ["cuda:0"]


def test_a_bar_is_drawn_on_all_that_the_device_has_with_a_line_at_what_is_free() -> None:
    page = bars_html([Bar(device("cuda:0", 10, 8), budget({"weights": 5, "kv_cache": 1}))])
    assert stretches(page, "plan-part") == [(0, 50), (50, 10)]
    assert stretches(page, "plan-others") == [(80, 20)]
    assert 'class="plan-free" style="left:80.000%"' in page
    assert "plan-over" not in page
    assert "6.00 GiB</strong> of 8.00 GiB free" in page


def test_what_overruns_is_red_from_the_line_on_even_beyond_the_device() -> None:
    bar = Bar(device("cuda:0", 10, 8), budget({"weights": 12}))
    assert (bar.over, bar.span) == (4 * GiB, round(12 * GiB * 1.02))
    left, width = stretches(bars_html([bar]), "plan-over")[0]
    assert left == pytest.approx(100 * 8 / 12.24, abs=0.01)
    assert left + width == pytest.approx(100 * 12 / 12.24, abs=0.01)
    assert "lacks 4.25 GiB" in bars_html([bar])


def test_the_whisker_reaches_from_the_low_to_the_high_forecast() -> None:
    bar = Bar(device("cuda:0", 10, 8), budget({"weights": 5}, margin=0.5))
    assert stretches(bars_html([bar]), "plan-whisker") == [(45, 10)]
    assert "may be off by ± 512 MiB" in bars_html([bar])
    assert "may be off by this much" in bars_html([bar, bar])


def test_a_label_ends_before_the_whisker_that_would_cross_it_and_before_what_overruns() -> None:
    page = bars_html([Bar(device("cuda:0", 10, 8), budget({"weights": 4, "context": 1}, margin=0.5))])
    assert re.findall(r'plan-label" style="right:([\d.]+)%', page) == ["0.000", "50.000"]
    page = bars_html([Bar(device("cuda:0", 10, 8), budget({"weights": 10}))])
    assert re.findall(r'plan-label" style="right:([\d.]+)%', page) == ["20.000"]


def test_a_gpu_that_stays_empty_is_drawn_all_the_same_in_the_page() -> None:
    page = plan_html(SMALL, ONE_GPU, fits_tokens=1, context_chosen=True)
    assert "not used, 10.9 GiB free" in page
    assert [bar.device.id for bar in bars_of(SMALL, ONE_GPU)] == ["cpu"]
    assert bars_of(replace(SMALL, budgets={}), ONE_GPU, idle_gpus=True) == []


def test_a_model_that_is_small_beside_its_device_is_shown_larger_below() -> None:
    small = Bar(device("cpu", 100, 90), budget({"weights": 1, "context": 1}))
    assert small.lens_span == round(2 * GiB * 1.04)
    assert bars_html([small]).count('class="plan-part weights') == 3  # bar, lens and legend
    assert Bar(device("cpu", 100, 90), budget({"weights": 50, "context": 1})).lens_span == 0
    assert Bar(device("disk", 100, 90), budget({"weights": 1})).lens_span == 0


def test_what_only_the_load_takes_is_a_stretch_of_its_own() -> None:
    bar = Bar(NO_GPU.cpu, plan_cases.LOADING.budgets["cpu"])
    assert [(part.kind, part.bytes) for part in bar.parts()][-1] == ("loading", bar.budget.total - bar.budget.resident)
    assert "More while loading" in bars_html([bar])


def test_every_stretch_tells_its_formula_with_the_numbers_and_its_method() -> None:
    page = drawn(ON_GPU)
    assert 'data-formula="2 · 32 layers · 8 heads · 128 · 8,192 tokens · 2 B"' in page
    assert 'data-method="exact: counted byte by byte"' in page
    assert f'data-size="1.00 GiB = {GiB:,} bytes"' in page
    bars, legend = page.split('<ul class="plan-legend">')
    assert bars.count("data-tip=") == bars.count('tabindex="0" role="img" aria-label=')
    assert legend.count("data-tip=") == len({part.kind for bar in bars_of(ON_GPU, ONE_GPU) for part in bar.parts()})
    assert f'<td class="plan-bytes">{GiB:,}</td>' in page


def test_figures_without_a_formula_of_their_own_get_the_models() -> None:
    spec = replace(SMALL.spec, kv_elements=384, kv_heads=3, head_dim=64)
    plan = replace(SMALL, spec=spec, budgets={"cpu": Budget.of({"kv_cache": Figure(188743680, "exact")})})
    page = plan_html(plan, NO_GPU, fits_tokens=1, context_chosen=True)
    assert 'data-formula="30 layers · 2 · 3 heads · 64 · 8,192 tokens · 2 B"' in page


def test_a_disk_is_read_from_and_never_too_full() -> None:
    bar = Bar(device("disk", 100, 10), budget({"weights": 60}))
    assert bar.over == 0
    assert "60.0 GiB</strong> there, 10.0 GiB free" in bars_html([bar])


def test_hostile_names_are_text() -> None:
    hostile = replace(ONE_GPU, gpus=(replace(ONE_GPU.gpus[0], name='<img src=x onerror="alert(1)">'),))
    page = plan_html(replace(ON_GPU, title="<b>"), hostile, fits_tokens=1, context_chosen=True)
    assert "<img" not in page and "<b>8" not in page and "&lt;b&gt;" in page


def test_the_slider_is_told_the_length_the_limit_and_who_chose() -> None:
    found = re.search(r'data-context="([^"]+)"', drawn(ON_GPU, context_chosen=False))
    assert found is not None
    told = json.loads(unescape(found[1]))
    assert told == {"tokens": 8192, "most": 131072, "fits": 23552, "chosen": False}


def test_a_plan_that_does_not_fit_says_what_would_and_offers_it() -> None:
    page = drawn(TOO_LARGE, refusal=REFUSAL, fits_tokens=0, instead=ON_GPU)
    assert "It does not fit" in page and "It would fit with --load-in-8bit" in page
    assert 'data-take="[&quot;--load-in-8bit&quot;]">Show 8-bit on the GPU</button>' in page


def test_what_lies_on_several_devices_is_summed_in_the_legend() -> None:
    page = drawn(SPREAD)
    assert 'data-formula="17.6 GiB (GPU 0) + 8.80 GiB (GPU 1) + 22.4 GiB (CPU memory) + 82.6 GiB (Disk)"' in page


def test_layers_are_drawn_where_they_are_on_several_devices() -> None:
    assert drawn(SPREAD).count('class="cell ') == 80
    assert 'class="cell ' not in drawn(ON_GPU)


def test_measured_bytes_lie_under_the_forecast_with_their_ratio() -> None:
    page = drawn(SMALL, measured={"cpu": Measured(int(0.251 * GiB), 424 * MiB)})
    assert "424 MiB</strong> measured now, × 0.46 of the forecast" in page
    assert "weights 257 MiB, × 1.000" in page
    assert "plan-measured" not in drawn(SMALL)


def test_measured_bytes_come_from_the_loader_and_the_engines_process() -> None:
    info = ScriptedEngine(Script(), fake_plan()).info
    found = measured_by_device(
        replace(info, placement={"cuda:0": 5, "disk": 7}), EngineStats(rss_bytes=90, gpu_bytes={"cuda:0": 60})
    )
    assert found == {"cuda:0": Measured(5, 60), "disk": Measured(7, 7), "cpu": Measured(0, 90)}


def test_ratios_and_speeds_are_written_to_the_digits_that_matter() -> None:
    assert (ratio(1002, 1000), ratio(460, 1000)) == ("× 1.002", "× 0.46")
    assert speed_text((12.34, 17.8)) == "12–18 tokens/s"
    assert speed_text((140.0, 143.0)) == "140 tokens/s"
    assert speed_text((0.012, 0.02)) == "50–83 s a token"
    assert speed_text((0.0, 0.0)) == "–"


@given(PURPOSES, st.floats(0.5, 400), st.floats(0, 1), st.floats(0, 20))
def test_whatever_the_forecast_nothing_leaves_the_picture(
    sizes: dict[Purpose, float], total: float, free: float, margin: float
) -> None:
    bar = Bar(device("cuda:0", total, total * free), budget(sizes, margin=margin))
    page = bars_html([bar])
    for kind in ("plan-part", "plan-others", "plan-over", "plan-whisker"):
        for left, width in stretches(page, kind):
            assert left + width <= 100.01


@pytest.mark.parametrize("flags", [{}, {"load_in_4bit": True}, {"auto_devices": True, "disk": True}])
@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_the_page_and_the_terminals_json_tell_the_same_bytes(gpus: int, flags: dict[str, object]) -> None:
    inventory = machine(gpus, 12, ram_gib=32)
    options = LoadOptions.model_validate(flags)
    table = list_plans(Question(llama("7B"), options, inventory, Path("c")))
    (told, *_) = table_json(table, longest_context=0)["plans"]
    page = plan_html(table.plans[0], inventory, fits_tokens=4096, context_chosen=True)
    rows = re.findall(r"<tr><th>[^<]*</th><td>([^<]*)</td><td class=\"plan-bytes\">([\d,]+)</td>", page)
    shown = Counter({title: 0 for title, _ in rows})
    for title, size in rows:
        shown[title] += int(size.replace(",", ""))
    parts = Counter({capital(PURPOSE_TITLES[purpose]): 0 for purpose in PURPOSE_TITLES})
    for told_device in told["devices"].values():
        for part in told_device["parts"]:
            parts[capital(PURPOSE_TITLES[part["purpose"]])] += part["size_bytes"]
    loading = shown.pop("More while loading", 0)
    assert all(shown[title] == parts[title] for title in shown)
    assert sum(shown.values()) + loading == sum(one["total_bytes"] for one in told["devices"].values())
