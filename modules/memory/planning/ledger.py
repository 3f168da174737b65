"""Forecast beside measured, kept per model, device and version; what was missed widens the next forecast's margin.

One small SQLite file in the user data folder. It holds names of models and devices and numbers, no paths and nothing of
what was said. It never stops anything: a damaged file is put aside with a word, a locked or full disk costs the record.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Literal

log = logging.getLogger(__name__)

Moment = Literal["weights", "use"]

LEDGER_NAME = "ledger.db"
ROWS_KEPT = 10_000
LEAST_RECORDS = 3
_LOCK_WAIT_S = 1.0
_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One device of one load. `moment`: "weights" once loaded, or the peak of the whole "use", the load included.

    On a GPU both figures leave the CUDA context out. `context_used` is the share of the context, 0 to 1, that was
    reached; `forecast_bytes` counts the KV cache up to there. `way` is the plan's title.
    """

    model: str
    family: str
    loader: str
    quantization: str
    way: str
    device: str
    device_name: str
    moment: Moment
    forecast_bytes: int
    measured_bytes: int
    context_used: float
    version: str

    @property
    def ratio(self) -> float:
        """Measured over forecast: above 1 the forecast was too low."""
        return self.measured_bytes / max(1, self.forecast_bytes)


@dataclass(frozen=True, slots=True)
class Summary:
    """All loads of a model in one way, on one device: how many, and measured over forecast.

    `ratios` are the middle ones by moment, `worst` the highest of any moment.
    """

    model: str
    way: str
    device: str
    count: int
    ratios: Mapping[Moment, float]
    worst: float


_COLUMNS = tuple(field.name for field in fields(Entry))
_TABLE = f"CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, at TEXT NOT NULL, {', '.join(_COLUMNS)})"


def summarize(entries: Sequence[Entry]) -> list[Summary]:
    """A Summary for each model, way and device; those of one model together, the one seen last at the end."""
    last = {entry.model: number for number, entry in enumerate(entries)}
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: last[entry.model]):
        groups.setdefault((entry.model, entry.way, entry.device), []).append(entry)
    found = []
    for (model, way, device), group in groups.items():
        by_moment: dict[Moment, list[float]] = {}
        for entry in group:
            by_moment.setdefault(entry.moment, []).append(entry.ratio)
        ratios = {moment: median(values) for moment, values in by_moment.items()}
        count = max(map(len, by_moment.values()))
        found.append(Summary(model, way, device, count, ratios, max(entry.ratio for entry in group)))
    return found


class Ledger:
    """The file of records. Every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened or made yet."""
        self.path = path

    def record(self, entries: Sequence[Entry]) -> None:
        """Keep `entries`; whatever prevents it is logged, never raised."""
        try:
            with self._open() as connection, connection:
                at = datetime.now(UTC).isoformat(timespec="seconds")
                marks = ", ".join("?" * (len(_COLUMNS) + 1))
                connection.executemany(
                    f"INSERT INTO entries (at, {', '.join(_COLUMNS)}) VALUES ({marks})",  # noqa: S608 - our own names
                    [(at, *astuple(entry)) for entry in entries],
                )
                connection.execute("DELETE FROM entries WHERE id <= (SELECT max(id) FROM entries) - ?", (ROWS_KEPT,))
        except (sqlite3.Error, OSError) as error:
            log.warning("The forecast's measure was not kept: %s", error)

    def observed_error(self, family: str, device_name: str, loader: str, quantization: str) -> float:
        """Measured over forecast that 95 % of the peaks of such loads stayed within; 1.0 below LEAST_RECORDS of them.

        Loaders count apart: llama.cpp and transformers are forecast by formulas that share nothing.
        """
        alike = {"family": family, "device_name": device_name, "loader": loader, "quantization": quantization}
        ratios = [entry.ratio for entry in self._read({"moment": "use", **alike})]
        return quantiles(ratios, n=20, method="inclusive")[-1] if len(ratios) >= LEAST_RECORDS else 1.0

    def entries(self) -> list[Entry]:
        """Every record, oldest first; none if the file is absent or cannot be read."""
        return self._read({})

    def _read(self, wanted: Mapping[str, str]) -> list[Entry]:
        """The records whose columns hold what is `wanted`, oldest first."""
        if not self.path.exists():
            return []
        where = " AND ".join(["1", *(f"{column} = ?" for column in wanted)])
        query = f"SELECT {', '.join(_COLUMNS)} FROM entries WHERE {where} ORDER BY id"  # noqa: S608 - our own names
        try:
            with self._open() as connection:
                return [Entry(*row) for row in connection.execute(query, tuple(wanted.values()))]
        except (sqlite3.Error, OSError) as error:
            log.warning("The ledger of forecasts cannot be read: %s", error)
            return []

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection to a sound file with our table; a damaged file is put aside first."""
        try:
            connection = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked, full or not writable: no sign of damage
            self._put_aside(error)
            connection = self._connect()
        with closing(connection):
            yield connection

    def _connect(self) -> sqlite3.Connection:
        """An open, checked connection. Raises sqlite3.DatabaseError for what is no ledger of this version."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S)
        try:
            connection.execute("PRAGMA synchronous = OFF")  # a record is not worth a wait for the disk
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its pages are damaged")
            if version not in (0, _SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"it has version {version}, not {_SCHEMA_VERSION}")
            if version == 0:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self, error: Exception) -> None:
        """Move the file away under a name that says what happened."""
        target = self.path.with_name(f"{self.path.stem}-put-aside-{datetime.now(UTC):%Y%m%d-%H%M%S}{self.path.suffix}")
        self.path.replace(target)
        log.warning("The ledger of forecasts was put aside as %s and begun anew: %s.", target.name, error)
