"""How fast this machine moves bytes: measured while nothing else is asked of it, and kept in machine.json.

Other programs slow a measurement and nothing hastens it: so a busy machine is not measured, the best of several
measurements counts, and they go on until two agree. The measuring program needs torch and so is a process of its own
(engine/process/bandwidth.py). Until it has run, and wherever it cannot, guesses serve.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from modules.files import atomic_write
from modules.hardware import Inventory
from modules.memory.planning.speed import Speeds, defaults, from_bandwidths
from modules.units import GiB

log = logging.getLogger(__name__)

MACHINE_FILE = "machine.json"
Bandwidths = Mapping[str, Mapping[str, float]]

_ROOT = Path(__file__).resolve().parent.parent
_COMMAND = (sys.executable, "-m", "modules.engine.process.bandwidth")
_MEASURING_S = 120.0
_LOOK_EVERY_S = 60.0
_STOP_EVERY_S = 0.5
_CLOSING_S = 5.0
# The buffer that is read, and torch.
_LEAST_FREE_BYTES = 2 * GiB
# Two measurements whose figures are all within this share of each other agree; after so many none more are made.
_AGREEING = 0.9
_MOST_MEASUREMENTS = 6
_BUSY_PERCENT = 25.0
_BUSY_LOOK_S = 1.0


def measure(stop: threading.Event | None = None, *, timeout_s: float = _MEASURING_S) -> Bandwidths:
    """Bytes a second by device and direction, from a process of its own; {} if that fails or `stop` is set."""
    deadline = time.monotonic() + timeout_s
    process = subprocess.Popen(_COMMAND, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process:
        while time.monotonic() < deadline and not (stop is not None and stop.is_set()):
            try:
                output, _ = process.communicate(timeout=_STOP_EVERY_S)
                result: dict[str, dict[str, float]] = json.loads(output.strip().splitlines()[-1])
            except subprocess.TimeoutExpired:
                continue
            except (IndexError, ValueError) as error:
                log.info("This machine's speeds could not be measured: %s", error)
                return {}
            return result
        process.kill()
    return {}


def is_busy() -> bool:
    """Whether programs, this one included, keep more than a quarter of the machine's cores at work; takes a second."""
    return psutil.cpu_percent(interval=_BUSY_LOOK_S) > _BUSY_PERCENT


class MachineSpeeds:
    """The machine's speeds as far as they are known. Every method may be called from any thread."""

    def __init__(
        self,
        path: Path,
        *,
        measure: Callable[[threading.Event], Bandwidths] = measure,
        is_busy: Callable[[], bool] = is_busy,
    ) -> None:
        """`path` is read now, if it is there."""
        self._path = path
        self._measure = measure
        self._is_busy = is_busy
        self._known = _read(path)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def speeds(self, inventory: Inventory) -> Speeds:
        """Measured speeds of those devices that are this machine's, guesses for the others."""
        there, asked = self._known.get("devices"), _devices(inventory)
        if not isinstance(there, dict) or there.get("cores") != asked["cores"]:
            return defaults(inventory)
        found: Bandwidths = self._known["bandwidths"]
        same = {device: rates for device, rates in found.items() if there.get(device, "") == asked.get(device)}
        disk = {"disk": found["disk"]} if "disk" in found else {}
        return from_bandwidths(same | disk, inventory)

    def measure_soon(
        self, read_inventory: Callable[[], Inventory], is_idle: Callable[[], bool], every_s: float = _LOOK_EVERY_S
    ) -> threading.Thread:
        """Measure in a thread whenever the machine is found idle, until two measurements agree; nothing if they did."""
        self._thread = threading.Thread(
            target=self._wait_and_measure, args=(read_inventory, is_idle, every_s), name="speeds", daemon=True
        )
        self._thread.start()
        return self._thread

    def close(self) -> None:
        """Measure no more; what measures now is ended."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def _wait_and_measure(
        self, read_inventory: Callable[[], Inventory], is_idle: Callable[[], bool], every_s: float
    ) -> None:
        while not self._closing.wait(every_s):
            inventory = read_inventory()
            if self._is_settled(inventory):
                return
            if is_idle() and inventory.cpu.free_bytes >= _LEAST_FREE_BYTES and not self._is_busy():
                found = self._measure(self._closing)
                if not found:
                    return
                self._keep(inventory, found)

    def _is_settled(self, inventory: Inventory) -> bool:
        known = self._known
        if known.get("devices") != _devices(inventory):
            return False
        return known.get("settled") is True or known.get("measurements", 0) >= _MOST_MEASUREMENTS

    def _keep(self, inventory: Inventory, found: Bandwidths) -> None:
        """Remember the best of `found` and what was known, here and on disk; a disk that refuses costs only the next
        start's.
        """
        devices = _devices(inventory)
        known = self._known if self._known.get("devices") == devices else {}
        before: Bandwidths = known.get("bandwidths", {})
        self._known = {
            "devices": devices,
            "bandwidths": _best(before, found),
            "measurements": known.get("measurements", 0) + 1,
            "settled": _agree(before, found),
        }
        try:
            atomic_write(self._path, json.dumps(self._known, indent=1))
        except OSError as error:
            log.warning("The machine's speeds were not kept: %s", error)


def _best(before: Bandwidths, found: Bandwidths) -> Bandwidths:
    """Figure by figure the higher one."""
    return {
        device: {
            name: max(before.get(device, {}).get(name, 0.0), found.get(device, {}).get(name, 0.0))
            for name in {**before.get(device, {}), **found.get(device, {})}
        }
        for device in {**before, **found}
    }


def _agree(before: Bandwidths, found: Bandwidths) -> bool:
    """Whether both have the same figures, all of them near each other."""
    best = _best(before, found)
    return all(
        min(before.get(device, {}).get(name, 0.0), found.get(device, {}).get(name, 0.0)) >= _AGREEING * rate
        for device, rates in best.items()
        for name, rate in rates.items()
    )


def _devices(inventory: Inventory) -> dict[str, str]:
    """What the speeds belong to: device id → name, and the number of cores."""
    return {
        "cores": str(inventory.physical_cores),
        **{device.id: device.name for device in (inventory.cpu, *inventory.gpus)},
    }


def _read(path: Path) -> dict[str, Any]:
    """The file's content; {} where it is absent or anything but what `_keep` writes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    bandwidths = content.get("bandwidths") if isinstance(content, dict) else None
    sound = isinstance(bandwidths, dict) and all(
        isinstance(rates, dict) and all(isinstance(rate, (int, float)) and rate > 0 for rate in rates.values())
        for rates in bandwidths.values()
    )
    return content if sound and type(content.get("measurements", 0)) is int else {}
