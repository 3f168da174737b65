"""How long OpenMP's threads wait: set for each library, and never against the user."""

from __future__ import annotations

from modules.engine.host.child import engine_environment
from modules.engine.process.spinning import FOR_LLAMACPP, FOR_TORCH, NAME, spin_as_llamacpp_should


def test_each_library_gets_its_own_and_the_users_wins() -> None:
    ours = engine_environment({})
    assert ours[NAME] == FOR_TORCH
    spin_as_llamacpp_should(ours)
    assert ours[NAME] == FOR_LLAMACPP
    theirs = engine_environment({NAME: "7"})
    spin_as_llamacpp_should(theirs)
    assert theirs[NAME] == "7"
