"""Snug's front door: settings → Services → one ASGI app → uvicorn. No logic lives here."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from modules.errors import SnugError
from modules.settings import Settings
from modules.settings_reading import read_settings


def main(argv: Sequence[str]) -> int:
    """Run the program; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever was started is ended
    try:
        settings = read_settings(argv)
        _configure_logging(verbose=settings.verbose)
        if settings.check:
            from modules.check import run_check

            return run_check(settings)
        if settings.plan:
            from modules.plan_command.report import run_plan

            return run_plan(settings)
        if settings.deepspeed and int(os.environ.get("RANK", "0")) > 0:
            from modules.engine.zero3.doors import follow

            return follow(settings)
        return serve(settings)
    except SnugError as error:
        print(f"snug: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def serve(settings: Settings) -> int:
    """Serve page and API until told to stop."""
    from modules import startup

    with startup.bind(settings) as listener, startup.user_data(settings) as user_data:
        for hint in startup.hints(settings, os.environ):
            print(hint)
        model = startup.first_model(settings)
        with startup.services(settings, user_data) as services:
            if model is not None:
                services.models.start_load(settings.load_options.model_copy(update={"model": model}))
            # The page's libraries take seconds to import: the model loads meanwhile.
            import uvicorn

            from modules.api.app import build_api
            from modules.api.guard import install_guard, is_loopback, new_access_token
            from modules.ui.app import mount_ui

            token = None if is_loopback(settings.host) else new_access_token()
            app = mount_ui(build_api(services), services)
            install_guard(app, host=settings.host, port=settings.listen_port, access_token=token)
            config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2, ws="none")
            address = startup.address(settings, token)
            server = startup.Server(
                config, address, auto_launch=settings.auto_launch, end_replies=lambda: startup.end_replies(services)
            )
            server.run(sockets=[listener])
    return 0


def _configure_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
