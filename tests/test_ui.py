"""The page without a browser: what text becomes, what the page is told, and that controls mirror declarations."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.accounts.person import THE_ONE
from modules.chat.running import ReplyView
from modules.engine.base import ModelInfo, Progress
from modules.errors import BadValue, NotFound, OutOfMemory
from modules.messages import Conversation, Message, ReplyStats
from modules.models.state import ModelState
from modules.sampling import GenerationParams, controls
from modules.settings import LoadOptions
from modules.ui import theme
from modules.ui.labels import label_of
from modules.ui.markdown import MAX_FORMULAS, StreamingMarkdown, render
from modules.ui.parameters_tab import read
from modules.ui.picture import info_html, layer_devices, layers_html
from modules.ui.views import (
    live_view,
    message_view,
    model_view,
    printable,
    revision,
    stats_line,
    thread_view,
)
from modules.ui.widgets import Pick, door, option_control, parameter_control, read_options
from modules.units import MiB
from tests.asking import asking

STATS = ReplyStats(
    prompt_tokens=600, cached_tokens=512, completion_tokens=37, queue_s=0.0, prefill_s=0.1, first_token_s=0.12,
    tokens_per_s=41.23, finish_reason="stop", model="tiny",
)  # fmt: skip
ARTICLE = r"""# Title

Some **bold** text, \(x_1\) and $y^2$.

\[ \frac{1}{2} \]

1. one
2. two

   with a paragraph

```python
def f(x):
    return x  # $$ not maths
```

| a | b |
|---|--:|
| 1 | 2 |

> quoted

The end, <b>as text</b>.
"""
VECTORS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](vbscript:x)",
    "<javascript:alert(1)>",
    "![a](http://192.0.2.1/x.png)",
    "![a](javascript:alert(1))",
    '[a](http://x "onmouseover=alert(1)")',
    '[a](http://x/"onmouseover="alert(1))',
    "$\\href{javascript:alert(1)}{x}$",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$<script>$",
    "```<img src=x onerror=alert(1)>\ncode\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "`<script>alert(1)</script>`",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>*{display:none}</style>",
    "<form action=//192.0.2.1><button>go</button></form>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "| <img src=x onerror=alert(1)> |\n|---|\n| [a](javascript:x) |",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
)
BOMBS = (
    "*" * 50_000,
    ">" * 50_000,
    "[" * 20_000,
    "\\(" * 20_000,
    "$" * 50_000,
    "- " * 50_000,
    "![[" * 10_000,
    "\\begin{align}\n" * 7_000,
    "> \\begin{gather}\n" * 5_000,
    "x" * 10**6,
)


def message(**changes: Any) -> Message:
    """A stored reply."""
    base = Message("m1", "c1", "u1", 2, "assistant", "Hello *you*.", 1.0, "complete", STATS, siblings=("m0", "m1"))
    return replace(base, **changes)


def reply(**changes: Any) -> ReplyView:
    """One look at a running reply."""
    return replace(ReplyView(message_id="m1", text="Hello", status="streaming"), **changes)


def test_markdown_becomes_code_maths_and_tables() -> None:
    page = render(ARTICLE)
    for part in ("<h1>", "<strong>", "<math ", "<mfrac>", '<span class="k">def</span>', '<td class="right">', "<ol>"):
        assert part in page
    assert "&lt;b&gt;as text&lt;/b&gt;" in page


@pytest.mark.parametrize("vector", VECTORS)
def test_hostile_markdown_leaves_no_live_html_at_any_length(vector: str) -> None:
    for end in range(1, len(vector) + 1):
        for page in (render(vector[:end]), *StreamingMarkdown().update(vector[:end])[0]):
            tags = [part.split(">")[0].lower() for part in page.split("<")[1:]]
            names = {tag.lstrip("/").split()[0].rstrip("/") for tag in tags if tag.strip()}
            assert not names & {"script", "img", "svg", "iframe", "style", "form", "input", "object", "base", "meta"}
            assert not any("onerror=" in tag or ("onmouseover=" in tag and "href" not in tag) for tag in tags)
            assert 'href="javascript' not in page.lower()
            assert 'href="data' not in page.lower()


def test_of_very_many_formulas_the_first_are_drawn_and_the_rest_stays_readable() -> None:
    for formula, shown in (("$x_1$ ", "<code>x_1</code>"), ("$$x_1$$\n\n", "x_1")):
        page = render(formula * (MAX_FORMULAS + 50))
        assert page.count("<math") == MAX_FORMULAS
        assert page.count(shown) >= 50
        assert page.count("<em>Of 2,050 formulas the first 2,000 are drawn.</em>") == 1
    assert "are drawn" not in render("$x$ " * MAX_FORMULAS)


def test_a_formula_that_never_ends_is_text_and_those_after_it_are_formulas() -> None:
    page = render("\\begin{align}\nx\n\n\\begin{align}\ny\n\n\\begin{gather}\nz\n\\end{gather}\n")
    assert page.count("\\begin{align}") == 2
    assert page.count("<math ") == 1


def test_links_open_elsewhere_without_telling_from_where_and_pictures_become_links() -> None:
    page = render("[a](https://example.org/) ![b](https://example.org/b.png)")
    assert page.count('rel="noopener noreferrer nofollow"') == 2
    assert page.count('target="_blank"') == 2
    assert "<img" not in page


@pytest.mark.parametrize("bomb", BOMBS, ids=[repr(bomb[:4]) for bomb in BOMBS])
def test_markdown_bombs_are_rendered_within_a_second(bomb: str) -> None:
    started = time.thread_time()
    render(bomb)
    assert time.thread_time() - started < 1.0


def test_a_growing_text_keeps_its_finished_blocks_and_ends_as_the_whole() -> None:
    streaming, before = StreamingMarkdown(), list[str]()
    for end in range(len(ARTICLE) + 1):
        blocks, tail = streaming.update(ARTICLE[:end])
        assert blocks[: len(before)] == before
        before = blocks
    assert ("".join(blocks) + tail).replace("\n", "") == render(ARTICLE).replace("\n", "")


def test_a_text_that_starts_over_is_rendered_anew() -> None:
    streaming = StreamingMarkdown()
    streaming.update("one\n\ntwo\n\nthree")
    assert streaming.update("other") == ([], "<p>other</p>\n")


def test_an_unfinished_formula_is_held_back_until_it_is_whole() -> None:
    streaming = StreamingMarkdown()
    assert streaming.update("So:\n\n$$ \\frac{1}{")[1] == ""
    assert "<mfrac>" in "".join(
        [*streaming.update("So:\n\n$$ \\frac{1}{2} $$")[0], streaming.update("So:\n\n$$ \\frac{1}{2} $$")[1]]
    )


@given(st.text())
def test_any_text_can_be_shown(text: str) -> None:
    printable(text).encode("utf-8")
    render(printable(text))


def test_a_message_is_told_with_its_text_versions_and_statistics() -> None:
    view = message_view(message())
    assert (view["text"], view["versions"]) == ("Hello *you*.", ["m0", "m1"])
    assert "<em>you</em>" in view["html"]
    assert view["stats"] == "37 tokens · 41.2 tok/s · first token 0.12 s · 512 cached"
    assert message_view(message(role="user"))["html"] == ""


def test_lone_halves_of_characters_do_not_break_the_page() -> None:
    assert message_view(message(content="a\ud83db"))["text"] == "a\ufffdb"
    assert live_view(reply(text="\ud83d", status="complete"), StreamingMarkdown())["text"] == "\ufffd"


def test_the_statistics_line_leaves_out_what_is_nothing_and_names_the_length_limit() -> None:
    assert stats_line(None) == ""
    assert stats_line(replace(STATS, completion_tokens=0)) == ""
    single = replace(STATS, completion_tokens=1, tokens_per_s=0.0, cached_tokens=0, finish_reason="length")
    assert stats_line(single) == "1 token · first token 0.12 s · length limit reached"


def test_a_thread_tells_what_the_page_has_seen() -> None:
    conversation = Conversation("c1", "", "Title", "chat", "Be brief.", "m1", 1.0, 2.0)
    view = thread_view(conversation, [message()], "m1")
    assert (view["head"], view["running"], view["conversation"]["system_prompt"]) == ("m1", "m1", "Be brief.")


def test_a_running_reply_tells_what_it_waits_for() -> None:
    assert live_view(reply(text="", position=2), StreamingMarkdown())["waiting"] == "Waiting, 2 before you"
    assert live_view(reply(text="", position=0), StreamingMarkdown())["waiting"] == "You are next"
    reading = live_view(reply(text="", prefill=(300, 1200)), StreamingMarkdown())
    assert reading["waiting"] == "Reading the conversation: 300 of 1200 tokens"


def test_a_finished_reply_carries_its_text_and_its_error() -> None:
    error = OutOfMemory("No memory.", remedy="Use 4-bit.")
    view = live_view(reply(text="*So*", status="error", error=error), StreamingMarkdown())
    assert view["done"] and "<em>So</em>" in view["html"]
    assert view["problem"] == {"code": "out_of_memory", "message": "No memory.", "remedy": "Use 4-bit."}


def test_without_streaming_text_is_told_only_at_the_end() -> None:
    view = live_view(reply(), StreamingMarkdown(), show_text=False)
    assert (view["blocks"], view["tail"], view["text"]) == ([], "", "")


def test_the_header_tells_how_far_a_load_is() -> None:
    view = model_view(ModelState(status="loading", name="tiny", progress=Progress("Reading", 0.5)))
    assert (view["status"], view["stage"], view["fraction"], view["answering"]) == ("loading", "Reading", 0.5, "")


def test_every_load_option_has_a_control_with_the_help_of_its_flag() -> None:
    for name, field in LoadOptions.model_fields.items():
        control = option_control(name, field.default)
        assert control.info == field.description
        assert control.label == label_of(name)


def test_controls_left_alone_give_the_default_options() -> None:
    values = {name: option_control(name, field.default).value for name, field in LoadOptions.model_fields.items()}
    assert read_options(values) == LoadOptions.model_validate({})


def test_controls_show_options_so_that_reading_them_gives_the_same_options() -> None:
    options = LoadOptions.model_validate(
        {"model": "tiny", "ctx_size": 2048, "gpu_memory": "10 8722MiB", "cpu_memory": "150MiB", "load_in_4bit": True,
         "quant_type": "fp4", "disk": True, "disk_cache_dir": "/tmp/cache", "dtype": "fp32", "lora": "a, b=0.5"}
    )  # fmt: skip
    values = {name: option_control(name, getattr(options, name)).value for name in LoadOptions.model_fields}
    assert read_options(values) == options


def test_a_bad_option_is_named_with_its_flag_and_value() -> None:
    with pytest.raises(BadValue, match=r"--cpu-memory lots: .*not a size"):
        read_options({"cpu_memory": "lots"})


def test_every_parameter_has_a_control_with_its_help_range_and_default() -> None:
    for group in controls().values():
        for name, control in group.items():
            shown = parameter_control(name, control)
            field = GenerationParams.model_fields[name]
            assert (shown.label, shown.info, shown.value) == (control.label, field.description, field.default)
            if isinstance(shown, gr.Slider):
                kind = int if field.annotation is int else float
                for end in (shown.minimum, shown.maximum):
                    GenerationParams.model_validate({name: kind(end)})


def test_an_invalid_parameter_is_named_and_the_others_count() -> None:
    reading = read({"top_p": 0, "temperature": 1.5, "max_new_tokens": 0.5, "nonsense": 1})
    assert reading.params == GenerationParams(temperature=1.5)
    view = reading.view()
    assert view["params"] == {"temperature": 1.5}
    assert set(view["invalid"]) == {"top_p", "max_new_tokens", "nonsense"}
    assert "greater than 0" in view["invalid"]["top_p"] and "0.9" in view["invalid"]["top_p"]


def test_a_revision_changes_with_all_that_a_page_shows_of_conversations() -> None:
    conversation = Conversation("c1", "", "Title", "chat", "Be brief.", "m1", 1.0, 2.0)
    others = [
        replace(conversation, **change)
        for change in ({"title": "\ud83d"}, {"system_prompt": ""}, {"head_id": None}, {"updated_at": 3.0})
    ]
    seen = {revision(), revision(conversation), *(revision(other) for other in others)}
    assert len(seen) == 6
    assert revision(conversation) == revision(replace(conversation))


def test_labels_are_made_from_names() -> None:
    assert [label_of(name) for name in ("gpu_memory", "load_in_8bit", "ctx_size", "nvme_offload_dir", "bf16")] == [
        "GPU memory", "Load in 8-bit", "Context size", "NVMe offload folder", "bf16",
    ]  # fmt: skip


def test_a_door_answers_problems_instead_of_raising(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(owner: str, body: Pick) -> dict[str, Any]:
        if body.id == "bug":
            raise RuntimeError("secret detail")
        raise NotFound("It is gone.", remedy="Reload.")

    request = asking(THE_ONE)
    answer = door(Pick, "open", refuse)
    assert answer.__name__ == "open"
    assert answer({"id": "x"}, request)["problem"] == {
        "code": "not_found",
        "message": "It is gone.",
        "remedy": "Reload.",
    }
    assert answer({"id": "x", "trust_remote_code": True}, request)["problem"]["code"] == "bad_value"
    assert answer("nonsense", request)["problem"]["code"] == "bad_value"
    assert "secret" not in str(answer({"id": "bug"}, request))


def test_layers_are_in_the_order_of_their_numbers_and_one_device_takes_all() -> None:
    placement = {f"model.layers.{number}": "cpu" if number < 10 else "disk" for number in (11, 2, 10, 1, 0)}
    assert layer_devices(placement, 5) == ["cpu", "cpu", "cpu", "disk", "disk"]
    assert layer_devices({"": "cuda:0"}, 3) == ["cuda:0"] * 3
    assert layer_devices({}, 3) == []
    page = layers_html(placement, 5)
    assert page.count('class="cell ') == 5
    assert "CPU memory: 3 layers" in page and "Disk: 2 layers" in page


def test_a_loaded_model_is_pictured_with_its_facts() -> None:
    info = ModelInfo(
        name="tiny", architecture="LlamaForCausalLM", loop="serial", loop_reason="one row <at> a time",
        context_tokens=2048, vocab_size=10, is_encoder_decoder=False, dtype="bfloat16", quantization="none",
        chat_template="", special_tokens={}, end_texts=(), placement={"cpu": 3 * MiB}, modules={"": "cpu"},
        load_s=1.5, peak_bytes=8 * MiB, warnings=("Slow.",),
    )  # fmt: skip
    page = info_html(info)
    for part in ("LlamaForCausalLM", "one row &lt;at&gt; a time", "3.00 MiB in CPU memory", "Slow.", "2,048 tokens"):
        assert part in page


def test_nothing_of_ours_points_to_another_machine() -> None:
    files = [path for path in theme.STATIC.iterdir() if path.suffix != ".png"]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert set(texts) == {*theme.STYLES, *theme.SCRIPTS}
    for name, text in texts.items():
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace(";  //", ""), name


def test_the_theme_gives_every_colour_in_light_and_dark_by_our_own_names() -> None:
    css = theme.theme()._get_theme_css()
    assert "https://" not in css
    assert "--button-primary-background-fill: var(--accent)" in css


TEXT_ON = (
    ("ink", "paper"), ("ink-2", "paper"), ("ink-2", "paper-3"), ("ink-2", "hover"), ("ink-2", "accent-soft"),
    ("ink-3", "paper"), ("ink-3", "paper-2"), ("ink-3", "paper-3"), ("ink-3", "field"), ("ink-3", "code-bg"),
    ("accent", "paper"), ("accent", "paper-2"), ("accent", "accent-soft"), ("on-accent", "accent"),
    ("code-comment", "code-bg"), ("bad", "paper"), ("bad", "bad-soft"), ("warn", "paper"), ("paper", "bad"),
    ("on-p-weights", "p-weights"), ("on-p-light", "p-kv_cache"), ("on-p-dark", "p-offload_buffer"),
    ("on-p-dark", "p-gradients"), ("on-p-dark", "p-context"),
    ("ink", "token-1"), ("ink", "token-2"), ("ink", "token-3"), ("ink", "token-4"),
)  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), TEXT_ON)
def test_text_stands_out_from_what_it_lies_on_as_wcag_aa_asks(text: str, ground: str, dark: bool) -> None:
    colours: dict[str, str] = {}
    for name in ("base.css", "plan.css", "notebook.css"):
        blocks = re.findall(r"^:root(\.dark)? \{(.*?)\}", (theme.STATIC / name).read_text(), re.S | re.M)
        for only_dark, block in blocks:
            if dark or not only_dark:
                colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    lighter, darker = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `#rrggbb`."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
