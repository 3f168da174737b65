"""Downloads from the hub into models/: one runs, others wait their turn; paused, resumed, cancelled from any page.

What an earlier server did not end is shown as interrupted and goes on where it was. Nothing here knows of plans.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modules.downloads.choices import Choice
from modules.downloads.job import DownloadView, Job
from modules.downloads.record import (
    FOLDER,
    Record,
    end_install,
    final_names,
    list_folders,
    read_record,
    record_of,
    throw_away,
)
from modules.downloads.transfer import PATIENCE, Patience
from modules.errors import Busy, DownloadFailed, NotFound, SnugError
from modules.files import check_name, safe_path
from modules.memory.model.hub_client import HubClient, Listing

END_S = 2.0  # for the last piece; what is not on the disk by then comes again

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hub:
    """Which hub, and how to be let in: `endpoint` None is huggingface_hub's own, HF_ENDPOINT if that is set.

    `read_token` returns the token, None for the one that huggingface_hub knows (HF_TOKEN, `hf auth login`).
    """

    endpoint: str | None = None
    read_token: Callable[[], str | None] = lambda: None

    def client(self, name: str, revision: str) -> HubClient:
        """One repository at one revision. Raises BadName, or BadFlag for a token file that cannot be read."""
        return HubClient(name, revision, endpoint=self.endpoint, token=self.read_token())


PUBLIC_HUB = Hub()


class Downloads:
    """All downloads into one models folder. Every method may be called from any thread."""

    def __init__(
        self,
        model_dir: Path,
        hub: Hub = PUBLIC_HUB,
        *,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        patience: Patience = PATIENCE,
    ) -> None:
        self.hub = hub
        self._model_dir = model_dir
        self._free_bytes = free_bytes
        self._patience = patience
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._broken: dict[str, SnugError] = {}
        self._worker: threading.Thread | None = None
        self._closed = False
        for folder in list_folders(model_dir):
            try:
                record = read_record(folder)
                if not end_install(folder, record, model_dir):
                    self._jobs[folder.name] = Job(folder, record, "interrupted")
            except SnugError as error:
                log.warning("%s", error)
                self._broken[folder.name] = error

    @property
    def free_bytes(self) -> int:
        """What is free on the disk of the models folder."""
        folder = self._model_dir
        while not folder.exists():
            folder = folder.parent
        return self._free_bytes(folder)

    def views(self) -> tuple[DownloadView, ...]:
        """Every download that is under way, waits, or ended since the server began."""
        with self._changed:
            broken = [DownloadView(name, "", "", "", "failed", 0, error=error) for name, error in self._broken.items()]
            return (*(job.view for job in self._jobs.values()), *broken)

    def view(self, ident: str) -> DownloadView:
        """One of them. Raises NotFound."""
        for view in self.views():
            if view.id == ident:
                return view
        raise NotFound(f"There is no download of {ident[:80]!r}.", remedy="Look at the list again.")

    def goal_of(self, listing: Listing, choice: Choice) -> tuple[str, bool]:
        """The name that a choice would have in models/, and whether it is there already.

        Another model of that name stays what it is: then the organisation's name comes in front. Raises BadName, Busy.
        """
        organisation, _, _ = listing.name.partition("/")
        for goal in (choice.goal, f"{organisation}_{choice.goal}"):
            path = safe_path(self._model_dir, check_name(goal))
            if not path.exists() or self._is_whole(listing, choice, goal):
                return goal, path.exists()
        raise Busy(
            f"There is another {choice.goal} in {self._model_dir.name}/.",
            remedy="Move it away or rename it, then try again.",
        )

    def _is_whole(self, listing: Listing, choice: Choice, goal: str) -> bool:
        """Whether what lies in models/ under that name has every file of the choice, by size."""
        record = record_of(listing, "main", choice, goal)
        names = {file.path: f"{goal}/{file.path}" for file in record.files} if record.is_folder else final_names(record)
        paths = {file: self._model_dir / names[file.path] for file in record.files}
        return all(path.is_file() and path.stat().st_size == file.size_bytes for file, path in paths.items())

    def needed_bytes(self, listing: Listing, choice: Choice, goal: str) -> int:
        """What of a choice still has to come; less than its size where an earlier download was broken off."""
        with self._changed:
            job = self._jobs.get(goal)
            mine = job is not None and (job.record.name, job.record.commit) == (listing.name, listing.commit)
            return choice.size_bytes - (job.view.done_bytes if job is not None and mine else 0)

    def start(self, listing: Listing, revision: str, choice: Choice) -> DownloadView:
        """Begin a download, or go on with the one that was broken off; one that runs stays as it is.

        Raises Busy where the model is there already, or another download will have its name.
        """
        goal, is_here = self.goal_of(listing, choice)
        if is_here:
            raise Busy(f"{goal} is in {self._model_dir.name}/ already.", remedy="Choose it in the list of models.")
        record = record_of(listing, revision, choice, goal)
        with self._changed:
            job = self._jobs.get(goal)
            if job is not None and job.state != "done" and not _same_files(job.record, record):
                raise Busy(
                    f"A download of {job.record.name} will be called {goal}, and has not ended.",
                    remedy="Let it end, or cancel it.",
                )
            if job is None or job.state == "done":
                self._broken.pop(goal, None)
                self._jobs[goal] = Job(self._model_dir / FOLDER / goal, record, "paused")
        return self.resume(goal)

    def resume(self, ident: str) -> DownloadView:
        """Go on, when its turn comes. Raises NotFound, or Busy while it is being paused."""
        with self._changed:
            job = self._job(ident)
            if job.state == "running" and job.stop.is_set():
                raise Busy(f"{ident} is being paused.", remedy="Try again in a moment.")
            if job.state in ("paused", "failed", "interrupted"):
                job.stop.clear()
                job.become("waiting")
                self._wake()
            return job.view

    def pause(self, ident: str) -> DownloadView:
        """Stop and keep what was fetched. Raises NotFound."""
        with self._changed:
            job = self._job(ident)
            if job.state == "waiting":
                job.become("paused")
                self._changed.notify_all()
            elif job.state == "running":
                job.stop.set()
            return job.view

    def cancel(self, ident: str) -> None:
        """Stop and throw away what was fetched; of one that is done, take it off the list. Raises NotFound."""
        with self._changed:
            if self._broken.pop(ident, None) is not None:
                throw_away(self._model_dir / FOLDER / ident)
                return
            job = self._job(ident)
            del self._jobs[ident]
            if job.state == "running":
                job.stop.set()  # who runs it throws it away
            elif job.state != "done":
                job.discard()

    def wait(self, ident: str, timeout_s: float) -> DownloadView:
        """The download as soon as it neither runs nor waits, or as it is after `timeout_s`. Raises NotFound."""
        with self._changed:
            self._changed.wait_for(lambda: self._job(ident).state not in ("running", "waiting"), timeout_s)
            return self._job(ident).view

    def close(self) -> None:
        """Stop what runs, so that it can go on another time. Nothing is started afterwards."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            worker = self._worker
        if worker is not None:
            worker.join(timeout=END_S)

    def _job(self, ident: str) -> Job:
        if ident not in self._jobs:
            raise NotFound(f"There is no download of {ident[:80]!r}.", remedy="Look at the list again.")
        return self._jobs[ident]

    def _wake(self) -> None:
        """Have a thread that takes the waiting ones; the caller holds the lock."""
        if self._worker is None and not self._closed:
            self._worker = threading.Thread(target=self._work, name="downloads", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        """One download after the other until none waits."""
        while (job := self._next()) is not None:
            self._run(job)
            with self._changed:
                if self._jobs.get(job.record.goal) is not job and job.state != "done":
                    job.discard()
                self._changed.notify_all()

    def _next(self) -> Job | None:
        with self._changed:
            waiting = [job for job in self._jobs.values() if job.state == "waiting"]
            if not waiting or self._closed:
                self._worker = None
                return None
            waiting[0].become("running")
            return waiting[0]

    def _run(self, job: Job) -> None:
        try:
            client = self.hub.client(job.record.name, job.record.revision)
            job.run(client, self._model_dir, lambda: self.free_bytes, self._patience)
        except SnugError as error:
            job.become("failed", error)
        except Exception as error:
            log.exception("The download of %s ended by a fault of Snug's", job.record.name)
            told = DownloadFailed(f"Something went wrong ({type(error).__name__}).", remedy="The log has the details.")
            job.become("failed", told)


def _same_files(one: Record, other: Record) -> bool:
    return (one.name, one.commit, one.files) == (other.name, other.commit, other.files)
