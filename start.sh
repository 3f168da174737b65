#!/usr/bin/env bash
# Sets up .venv on the first run, then starts Snug with the flags given: ./start.sh --load-in-4bit
set -euo pipefail
cd "$(dirname "$0")"
. ./setup.sh requirements.txt
exec .venv/bin/python server.py "$@"
