"""Errors keep code, message, remedy and field on every way they travel."""

from __future__ import annotations

import pickle

import pytest

from modules import errors
from modules.errors import BadFlag, SnugError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SnugError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_crosses_process_borders_whole(kind: type[SnugError]) -> None:
    error = kind("This was wrong.", remedy="Do that.", param="field")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.remedy, again.param, str(again)) == (
        "This was wrong.", "Do that.", "field", "This was wrong. Do that.",
    )  # fmt: skip


def test_codes_are_unique_and_statuses_are_errors() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    assert all(400 <= kind.http_status < 600 for kind in KINDS)


def test_an_error_without_remedy_reads_as_its_message() -> None:
    assert str(BadFlag("Only this.")) == "Only this."
