"""KV pages of different people, kept apart: rows share those of the same `whose` alone.

How many tokens of a prompt were known already is told with each reply, and its time tells it too: with pages that all
share, anybody could guess at another's conversation, page by page, and see which guess was right.
The library knows a page by a hash of its tokens and of the pages before it, so it gets the first tokens of each row
under other names: only the hashes see them. It touches inner parts of transformers 5.23:
generation/continuous_batching/cache.py and cache_allocators.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

_NAMED_TOKENS = 4  # 16 bytes of a hash

Match = Callable[[list[int]], list[int]]
Mark = Callable[[str, list[int], int], None]


class PagesApart:
    """Whose the rows of one cache are. Used by the thread that runs the model."""

    def __init__(self, cache: Any) -> None:
        """Put itself between `cache` and its hashes, before anything is in it."""
        self._whose: dict[str, str] = {}
        self._now = ""
        cache.search_prefix_match = partial(self._search, cache.search_prefix_match)
        for allocator in cache.cache_allocators.values():
            page: int = allocator.tokens_per_page
            allocator.match_prefix_blocks = partial(self._match, allocator.match_prefix_blocks, page)
            allocator.mark_complete_blocks = partial(self._mark, allocator.mark_complete_blocks, page)

    def put(self, row_id: str, whose: str) -> None:
        """A new row, before the cache hears of it."""
        self._whose[row_id] = whose

    def forget(self, row_id: str | None = None) -> None:
        """A row, or all of them, are gone."""
        if row_id is None:
            self._whose.clear()
        else:
            self._whose.pop(row_id, None)

    def shared(self, allocator: Any, tokens: Sequence[int], whose: str) -> set[int]:
        """The pages that a row with these tokens would share."""
        self._now = whose
        return set(allocator.match_prefix_blocks(list(tokens)))

    def _search(self, search: Callable[[str, list[int]], int], row_id: str, tokens: list[int]) -> int:
        self._now = self._whose[row_id]
        return search(row_id, tokens)

    def _match(self, match: Match, page: int, tokens: list[int]) -> list[int]:
        return match(named(tokens, self._now, page))

    def _mark(self, mark: Mark, page: int, row_id: str, tokens: list[int], count: int) -> None:
        if row_id in self._whose:
            mark(row_id, named(tokens, self._whose[row_id], page), count)


def named(tokens: list[int], whose: str, page: int) -> list[int]:
    """`tokens` with the first ones, within a page of `page`, made of them and of `whose`; as they are for nobody's."""
    count = min(_NAMED_TOKENS, page)
    if not whose or len(tokens) < page:  # less than a page is shared with nobody
        return tokens
    names = whose.encode("utf-8", "surrogatepass") + b"\0" + array("i", tokens[:count]).tobytes()
    digest = hashlib.blake2b(names, digest_size=count * array("i").itemsize).digest()
    return [*array("i", digest), *tokens[count:]]
