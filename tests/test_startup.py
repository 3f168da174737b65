"""What a start does around serving: what it says to someone who started it that way."""

from __future__ import annotations

from modules import startup
from modules.settings_reading import read_settings


def test_deepspeed_without_its_launcher_says_how_to_start_it() -> None:
    alone = startup.hints(read_settings(["--deepspeed"], {}), {})
    assert len(alone) == 1 and "deepspeed --num_gpus=N server.py --deepspeed" in alone[0]
    assert startup.hints(read_settings(["--deepspeed"], {}), {"WORLD_SIZE": "1"}) == []
    assert startup.hints(read_settings([], {}), {}) == []
