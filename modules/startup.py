"""What a start does before and around serving: the port, the user data folder, the starter model, the address.

Each effect is small and named; server.py strings them together.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn

from modules.accounts.directory import FILE, Accounts
from modules.attachments.extracting import Extractor
from modules.characters.library import Library
from modules.chat.presets import Presets
from modules.chat.prompts import Prompts
from modules.chat.scripts_model import ModelForScripts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.chat.templates import TemplateWorker
from modules.compiled import COMPILED
from modules.downloads.manager import Downloads
from modules.downloads.offers import hub_of
from modules.errors import BadFlag, SnugError, StoreFailed
from modules.extensions.manager import Extensions
from modules.hardware import read_inventory
from modules.machine_speeds import MACHINE_FILE, MachineSpeeds
from modules.memory.dryruns.asking import DryRuns
from modules.memory.model.listing import list_models
from modules.models.manager import ModelManager
from modules.models.planning import find_model
from modules.services import Services
from modules.settings import LoadOptions, Settings, check_machine
from modules.starter import STARTER_NAME, fetch_in_terminal, is_wanted
from modules.user_data import lock_user_data

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
# The process for dry runs holds a few hundred MiB: a pause in looking at plans ends it.
DRY_RUNS_IDLE_S = 20.0
DRY_RUNS_WAITING = 4
GRADIO_FILES = "GRADIO_TEMP_DIR"
"""Where Gradio keeps uploads and lets pages read. Its own choice, as torch's for COMPILED, is a folder of /tmp that
anybody can name: it belongs to the user of the machine who was first."""


def bind(settings: Settings) -> socket.socket:
    """The listening socket, made first so that a taken port is known before anything else is done.

    Raises BadFlag naming host and port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.listen_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise BadFlag(
            f"--listen-host {settings.host}: this is no address of this machine.",
            remedy="Use 127.0.0.1, 0.0.0.0 or one of the machine's own addresses.",
            param="listen_host",
        ) from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _bind_error(settings, error) from error
    return listener


def _bind_error(settings: Settings, error: OSError) -> SnugError:
    if error.errno == errno.EADDRINUSE:
        return BadFlag(
            f"--listen-port {settings.listen_port}: another program uses this port already.",
            remedy=f"Stop it, or choose another: --listen-port {settings.listen_port % 65535 + 1}.",
            param="listen_port",
        )
    if error.errno == errno.EACCES:
        return BadFlag(
            f"--listen-port {settings.listen_port}: this port needs administrator rights.",
            remedy="Choose one above 1023.",
            param="listen_port",
        )
    return BadFlag(
        f"--listen-host {settings.host}: {error.strerror or error}.",
        remedy="Use 127.0.0.1, 0.0.0.0 or one of the machine's own addresses.",
        param="listen_host",
    )


def first_model(settings: Settings) -> str | None:
    """The model to load at start: on another server, the one named, else the only one; fetches the starter if wanted.

    Raises NotAvailableHere for flags that ask for what this machine lacks, ModelNotFound, and what `fetch` raises.
    """
    model = settings.model
    if (server := settings.remote_server) is not None:
        server.read_key()  # a file that is not there is told at once
        return server.name
    check_machine(settings, read_inventory(settings.user_data_dir))
    if is_wanted(settings.model_dir, model):
        fetch_in_terminal(settings.model_dir)
        return STARTER_NAME
    if model is not None:
        return find_model(settings.model_dir, model).name
    usable = [entry.name for entry in list_models(settings.model_dir) if not entry.problem]
    return usable[0] if len(usable) == 1 else None


def options_for(models: ModelManager, model: str) -> LoadOptions:
    """How to load `model` at start: by the flags, and where they say nothing as it was loaded last, if that goes."""
    usual, known = models.defaults.model_copy(update={"model": model}), models.memory.of(model).options
    if known is None or usual.deepspeed:  # the other ranks know the flags alone
        return usual
    try:
        models.plan(known)
    except SnugError as error:
        log.warning("%s is not loaded as it was last: %s", model, error)
        return usual
    return known


def hints(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """What someone who started it this way may want to know."""
    if settings.deepspeed and "WORLD_SIZE" not in environment:
        return [
            "--deepspeed without its launcher: this one process does all the work, on one GPU at most. "
            "For N GPUs: deepspeed --num_gpus=N server.py --deepspeed"
        ]
    return []


@contextmanager
def user_data(settings: Settings) -> Iterator[Path]:
    """The user data folder, held for this server alone. Raises UserDataInUse or StoreFailed."""
    with lock_user_data(settings.user_data_dir):
        yield settings.user_data_dir


@contextmanager
def services(settings: Settings, folder: Path) -> Iterator[Services]:
    """All parts of Snug, put together; afterwards replies are stored, the engine has ended, the files are closed."""
    extensions = Extensions(ROOT / "extensions", settings.extensions, kept=folder / "extensions")
    with ExitStack() as parts:
        parts.enter_context(own_temporary_files(folder / "cache"))
        extensions.start()
        accounts = Accounts(folder / FILE)
        parts.callback(accounts.close)
        store = Store(folder / "snug.db")
        parts.callback(store.close)
        store.backup_if_due()
        worker = TemplateWorker()
        parts.callback(worker.close)
        speeds = MachineSpeeds(folder / MACHINE_FILE)
        parts.callback(speeds.close)
        dry_runs = DryRuns(folder / "cache" / "dryruns", idle_s=DRY_RUNS_IDLE_S, most_waiting=DRY_RUNS_WAITING)
        models = ModelManager(settings, speeds=speeds.speeds, dry_runs=dry_runs)
        parts.callback(models.close)
        speeds.measure_soon(models.machine, lambda: models.idle)
        prompts = Prompts(worker)
        library = Library.of(ROOT / "characters", folder)
        chat = ChatService(models, store, prompts, extensions, library)
        extensions.connect(ModelForScripts(models))
        parts.callback(chat.shutdown)
        downloads = Downloads(settings.model_dir, hub_of(settings))
        parts.callback(downloads.close)
        extractor = Extractor()
        parts.callback(extractor.close)
        yield Services(
            extractor=extractor,
            settings=settings,
            models=models,
            chat=chat,
            store=store,
            prompts=prompts,
            presets=Presets(ROOT / "presets", folder / "presets"),
            library=library,
            downloads=downloads,
            extensions=extensions,
            accounts=accounts,
        )


@contextmanager
def own_temporary_files(cache: Path) -> Iterator[None]:
    """Gradio's and torch's files in folders of `cache` that no other user can open, in this process and those that it
    starts; elsewhere, where their variables say so already. Gradio's are emptied first. Raises StoreFailed.
    """
    chosen = {name: cache / kept for name, kept in ((GRADIO_FILES, "page"), (COMPILED, "compiled"))}
    chosen = {name: folder.absolute() for name, folder in chosen.items() if not os.environ.get(name)}
    if GRADIO_FILES in chosen:
        shutil.rmtree(chosen[GRADIO_FILES], ignore_errors=True)
    for folder in chosen.values():
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # who may write there may put another in its place
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise StoreFailed(
                f"The user data folder {cache.parent} cannot be written: {error.strerror or error}.",
                remedy="Choose another folder with --user-data-dir.",
            ) from error
    os.environ.update({name: str(folder) for name, folder in chosen.items()})
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)


class Server(uvicorn.Server):
    """uvicorn that says where it is once it answers, and ends running replies before it stops answering."""

    def __init__(
        self,
        config: uvicorn.Config,
        address: str,
        *,
        guests: str | None = None,
        auto_launch: bool,
        end_replies: Callable[[], None],
    ) -> None:
        """`guests`: the address for guests, where they have one of their own."""
        super().__init__(config)
        self.address = address
        self.guests = guests
        self.auto_launch = auto_launch
        self.end_replies = end_replies

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, then print the address (and open it, if asked)."""
        await super().startup(sockets)
        if not self.should_exit:
            print(f"Snug is at {self.address}", flush=True)  # noqa: T201 - what the terminal is for
            if self.guests:
                print(f"Guests and programs, to chat but not to manage: {self.guests}", flush=True)  # noqa: T201
            if self.auto_launch:
                threading.Thread(target=webbrowser.open, args=(self.address,), daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let every stream reach its last event, then stop."""
        await asyncio.to_thread(self.end_replies)
        await super().shutdown(sockets)


def end_replies(services: Services) -> None:
    """Store what replies hold and end them, on the page and in the API. Nothing is generated afterwards."""
    services.chat.shutdown()
    services.models.close()


def address(settings: Settings, token: str | None) -> str:
    """The address to print: a loopback name where that reaches the server, with the secret if there is one."""
    host = settings.host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = _own_address()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{settings.listen_port}/" + (f"?token={token}" if token else "")


def _own_address() -> str:
    """This machine's address in its local network, as the routing table sees it; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
