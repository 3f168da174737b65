"""The goals in a few words, for the README: what happens, what is asked, what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules.units import MiB

Figures = dict[str, Any]
Brief = tuple[str, str, Callable[[Figures], str]]
BRIEF: dict[int, Brief] = {
    1: (
        "killed while it writes",
        "200 × kill -9, no message lost",
        lambda f: f"{f['rounds']} kills, {f['lost']} of {f['saved']:,} messages lost",
    ),
    2: (
        "made-up API requests, half of them nonsense",
        "10,000, no 5xx, none over 10 s",
        lambda f: f"{_sum(f):,}, {_sum(f, 500)} × 5xx, slowest {f['slowest_s']:.2g} s",
    ),
    3: (
        "clients that leave in mid-reply",
        "200, model idle within 1 s, nothing leaked",
        lambda f: f"{f['rounds']}, idle after at most {f['slowest_s'] * 1000:.0f} ms, {f['late']} late",
    ),
    4: (
        "64 streams at once",
        "no error, 99 % of gaps within 2 s, memory +150 MB at most",
        lambda f: (
            f"{f['errors'] + f['real_errors']} errors, gaps within {f['p99_gap_s'] * 1000:.0f} ms, memory "
            f"+{f['grown_bytes'] / MiB:.0f} MiB"
        ),
    ),
    5: (
        "20 clients that never read, 200 that send a byte a second",
        "a chat beside them starts within 1 s",
        lambda f: f"after at most {max(f['first_s']):.2f} s",
    ),
    6: (
        "a mixed day: chats, departures, other models",
        "60 minutes, memory +5 % at most, descriptors ± 5, no 5xx",
        lambda f: (
            f"{f['requests']:,.0f} requests, memory {f['rss_after'] / f['rss_before'] - 1:+.1%}, descriptors "
            f"{f['descriptors_after'] - f['descriptors_before']:+.0f}, {f['crashes']:.0f} × 5xx"
        ),
    ),
    7: (
        "scripts in a reply, cut at every position",
        "150 texts, none runs, nothing is fetched",
        lambda f: f"{f['vectors']} texts, {f['states']:,} states, {len(f['ran'])} ran, {len(f['requests'])} fetched",
    ),
    8: (
        "control tokens typed by a user",
        "none becomes one; clean chats keep the library's ids",
        lambda f: f"{f['became']} of {f['prompts']:,} prompts; {f['equal']} of {f['clean']} chats",
    ),
    9: (
        "broken and hostile model files and templates",
        "85, all refused by name, within 1 s (templates 2 s)",
        lambda f: f"{f['refused']} of {f['in_all']}, within {f['slowest_s']:.2f} s ({f['template_s']:.1f} s)",
    ),
    10: (
        "every route × who asks × Host × Origin",
        "no answer beside [the table](docs/routes.md)",
        lambda f: f"{f['requests']:,} requests, {len(f['differences'])} differences",
    ),
    11: (
        "one conversation in several tabs",
        "500 histories, no message lost or doubled",
        lambda f: f"{f['histories']}, {f['fault'] or 'none'}",
    ),
    12: (
        "a model that fails to load",
        "6 kinds of failure, the old one answers within 2 s",
        lambda f: f"{f['kept']} of 6, after at most {f['answer_s']:.2f} s",
    ),
    13: (
        "a full disk at every write",
        "no half file, every failure told",
        lambda f: f"{f['limits']} limits, {f['told']} of {f['failures']} told",
    ),
    14: (
        "known flaws in libraries, dangerous calls in the code",
        "none",
        lambda f: (
            f"{len(f['flaws'])} flaws in {f['answered']} libraries, {len(f['unanswered'])} could not be asked; "
            f"{f['findings'] + len(f['uses'])} calls"
        ),
    ),
    15: (
        "tests of every submission",
        "12 minutes, 1 flake in 500 runs at most",
        lambda f: f"{f['minutes']:.0f} minutes, {f['failed']} failed; flakes not counted",
    ),
}


def _sum(figures: Figures, least: int = 0) -> int:
    """How many answers had this status or a higher one."""
    return sum(count for status, count in figures["statuses"].items() if int(status) >= least)


def brief_table(rows: list[dict[str, Any]]) -> str:
    """Markdown. Of a measurement that broke or was not made the figures lack: it says so itself."""
    lines = ["| what happens | asked | measured |  |", "| --- | --- | --- | --- |"]
    for row in rows:
        what, asked, told = BRIEF[row["goal"]]
        measured = told(row["figures"]) if row["figures"] else "—" if row["passed"] is None else row["measured"]
        lines.append(f"| {what} | {asked} | {measured} | {row['verdict']} |")
    return "\n".join(lines) + "\n"
