"""One download under way: its files one after the other, what people see of it, and how it is stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from modules.downloads.record import Record, RemoteFile, install, throw_away, write_record
from modules.downloads.transfer import Patience, Stopped, Transfer, Watch, check_room, disk_errors
from modules.errors import Busy, SnugError
from modules.memory.model.hub_client import HubClient

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "paused", "interrupted", "failed", "done"]
SPEED_OVER_S = 8.0
_SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class DownloadView:
    """A download as people see it. `id` is its name in models/; `note` is what is out of the ordinary just now.

    `left_s` is 0 where it cannot be told; `interrupted` is a download that an earlier server did not end; `pausing` is
    one that runs to the end of its last piece.
    """

    id: str
    name: str
    revision: str
    title: str
    state: State
    total_bytes: int
    done_bytes: int = 0
    speed_Bps: float = 0.0
    left_s: float = 0.0
    file: str = ""
    checking: bool = False
    pausing: bool = False
    note: str = ""
    error: SnugError | None = None


class Job:
    """A download in its folder. Every method may be called from any thread; `run` from one."""

    def __init__(
        self, folder: Path, record: Record, state: State, *, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self.folder = folder
        self.record = record
        self.stop = threading.Event()
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque()
        self._ended_bytes = 0
        self._view = DownloadView(
            record.goal, record.name, record.revision, record.title, state, record.size_bytes, self._bytes_there()
        )

    @property
    def view(self) -> DownloadView:
        """How it stands, its speed over the last seconds."""
        with self._lock:
            if self._view.state != "running":
                return self._view
            view = replace(self._view, pausing=self.stop.is_set())
            if len(self._samples) < 2:
                return view
            (first, before), now = self._samples[0], self._clock()
            speed = max(0.0, (self._samples[-1][1] - before) / max(now - first, 0.001))
            left = (view.total_bytes - view.done_bytes) / speed if speed else 0.0
            return replace(view, speed_Bps=speed, left_s=left)

    @property
    def state(self) -> State:
        """Its state alone."""
        return self._view.state

    def become(self, state: State, error: SnugError | None = None) -> None:
        """Change its state; what was said of the one before is over."""
        with self._lock:
            self._samples.clear()
            self._view = replace(self._view, state=state, error=error, note="", file="", checking=False)

    def watch(self, free_bytes: Callable[[], int]) -> Watch:
        """What a transfer tells it."""
        return Watch(self.stop, self._on_bytes, self._on_check, self._on_note, free_bytes)

    def run(self, client: HubClient, model_dir: Path, free_bytes: Callable[[], int], patience: Patience) -> None:
        """Fetch what lacks, check it, put it into models/. Ends in the state done, paused or failed; raises nothing."""
        watch = self.watch(free_bytes)
        try:
            with disk_errors():
                self._fetch_all(Transfer(client, self.record.commit, watch, patience), free_bytes)
                install(self.folder, self.record, model_dir)
            self.become("done")
        except Stopped:
            self.become("paused")
        except SnugError as error:
            log.warning("The download of %s stopped: %s", self.record.name, error)
            self.become("failed", error)

    def _fetch_all(self, transfer: Transfer, free_bytes: Callable[[], int]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            with lock.acquire(timeout=0):
                write_record(self.folder, self.record)
                check_room(free_bytes(), self.record.size_bytes - self._bytes_there())
                for file in self.record.files:
                    if not self._is_here(file):
                        self._begin(file)
                        transfer.fetch(file, self._part(file), self._goal(file))
        except Timeout as error:
            raise Busy(
                f"Another Snug is fetching {self.record.goal} just now.", remedy="Look there, or wait until it is done."
            ) from error

    def discard(self) -> None:
        """Forget it, and what was fetched. Only while it does not run."""
        throw_away(self.folder)

    def _is_here(self, file: RemoteFile) -> bool:
        """Whether a file has arrived whole: it was checked before it got its name."""
        goal = self._goal(file)
        return goal.is_file() and goal.stat().st_size == file.size_bytes

    def _bytes_there(self) -> int:
        """What is on the disk of all files, parts too."""
        paths = (path for file in self.record.files for path in (self._goal(file), self._part(file)))
        return sum(path.stat().st_size for path in paths if path.is_file())

    def _begin(self, file: RemoteFile) -> None:
        own = self._part(file)
        self._ended_bytes = self._bytes_there() - (own.stat().st_size if own.exists() else 0)
        with self._lock:
            self._view = replace(self._view, state="running", file=file.path)

    def _on_bytes(self, count: int) -> None:
        done, now = self._ended_bytes + count, self._clock()
        with self._lock:
            self._view = replace(self._view, done_bytes=done, checking=False)
            samples = self._samples
            if samples and done < samples[-1][1]:
                samples.clear()
            if samples and now - samples[-1][0] < _SAMPLE_S:
                return
            samples.append((now, done))
            while samples and now - samples[0][0] > SPEED_OVER_S:
                samples.popleft()

    def _on_check(self, _: int) -> None:
        with self._lock:
            self._view = replace(self._view, checking=True)

    def _on_note(self, text: str) -> None:
        with self._lock:
            self._view = replace(self._view, note=text)

    def _part(self, file: RemoteFile) -> Path:
        return self.folder / "parts" / f"{file.path}.part"

    def _goal(self, file: RemoteFile) -> Path:
        return self.folder / "files" / file.path
