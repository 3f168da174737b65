"""Snug's front door: settings → Services → one ASGI app → uvicorn. No logic lives here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from modules.errors import SnugError
from modules.logs import configure_logging
from modules.settings import Settings
from modules.settings_reading import read_settings


def main(argv: Sequence[str]) -> int:
    """Run the program; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever was started is ended
    try:
        if list(argv[:1]) == ["users"]:
            from modules.accounts.command import run_users

            return run_users(argv[1:])
        settings = read_settings(argv)
        configure_logging(settings.log_format, verbose=settings.verbose)
        if settings.check:
            from modules.check import run_check

            return run_check(settings)
        if settings.download:
            from modules.download_command import run_download

            return run_download(settings)
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one changes nothing on the way out
        return 130


def serve(settings: Settings) -> int:
    """Serve page and API until told to stop."""
    from modules import heap, startup
    from modules.read_only import copied

    heap.prepare_server()
    with startup.bind(settings) as listener, copied(settings) as settings, startup.user_data(settings) as user_data:
        for hint in startup.hints(settings, os.environ):
            print(hint)
        model = startup.first_model(settings)
        with startup.services(settings, user_data) as services:
            if model is not None:
                services.models.start_load(startup.options_for(services.models, model))
            # The page's libraries take seconds to import: the model loads meanwhile.
            import uvicorn

            from modules.api.app import build_api
            from modules.api.doors.connections import Connection
            from modules.api.doors.guard import install_guard, may_be_reached, new_access_token
            from modules.api.watching import install_watching
            from modules.ui.app import mount_ui

            reached = may_be_reached(settings.host, settings.allowed_host)
            token, guest_token = (new_access_token(), new_access_token()) if reached else (None, None)
            app = mount_ui(build_api(services), services)
            install_guard(
                app,
                host=settings.host,
                port=settings.listen_port,
                access_token=token,
                guest_token=guest_token,
                accounts=services.accounts,
                allowed_hosts=settings.allowed_host,
                cors_origins=settings.cors_origin,
                trusted_proxies=settings.trusted_proxy,
            )
            install_watching(app, services.models.meter)
            config = uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                access_log=False,
                proxy_headers=False,  # guard.py listens to proxies that --trusted-proxy names, and to no other
                server_header=False,
                timeout_graceful_shutdown=2,
                ws="none",
            )
            everybody_logs_in = services.accounts is not None and services.accounts.exist()
            if everybody_logs_in:
                token = guest_token = None
            server = startup.Server(
                config,
                startup.address(settings, token),
                guests=startup.address(settings, guest_token) if guest_token else None,
                auto_launch=settings.auto_launch,
                end_replies=lambda: startup.end_replies(services),
            )
            server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
