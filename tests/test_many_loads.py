"""Models loaded, switched and unloaded over and over: no process, file, descriptor or memory is left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psutil
import pytest

from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings
from tests.crowd import holdings
from tests.fakes import Script, ScriptedLoad, fake_inventory, fake_request, make_model_folder


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_loads_and_unloads_leave_nothing_behind(
    times: int, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in "ab":
        make_model_folder(settings.model_dir, name, Script(reply=name))
    manager = ModelManager(
        settings, loaders={"transformers": ScriptedLoad()}, read_inventory=lambda _: fake_inventory(), drain_s=0.0
    )

    def once() -> None:
        for name in "ab":
            manager.load(LoadOptions.model_validate({"model": name}))
            assert manager.engine().submit(fake_request()).result(20)[0] == name
        manager.unload()

    try:
        once()
        pid = psutil.Process().pid
        before = holdings(pid)
        for _ in range(times):
            once()
        after = holdings(pid)
        assert after.children == before.children
        assert abs(after.descriptors - before.descriptors) <= 2
        assert abs(after.threads - before.threads) <= 2
        assert after.own_rss_bytes < before.own_rss_bytes * 1.05
        assert [path for path in temporary.rglob("*") if path.is_file()] == []
    finally:
        manager.close()
