#!/usr/bin/env bash
# Runs every check: ruff, mypy, pytest. --all adds the slow cases; other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
. ./setup.sh requirements-dev.txt
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1

# Chromium for the page's tests: the system's, else Debian's package (as root), else playwright's own.
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium) >/dev/null 2>&1 || true
    chromium=$(command -v chromium || true)
fi
if [ -z "$chromium" ]; then
    playwright install chromium >/dev/null 2>&1 || echo "No Chromium found: the page's tests will be skipped."
fi
export SNUG_TEST_CHROMIUM=$chromium

# libaio for ZeRO-3's parameters on NVMe.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -e /usr/include/libaio.h ]; then
    echo "Installing libaio"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libaio-dev) >/dev/null 2>&1 || true
fi

ruff check .
ruff format --check .
mypy
python -m modules.starter

# Tests that failed are asked once more, alone: on a busy machine a clock runs out. Many failures are no accident.
again=.pytest_cache/v/cache/lastfailed
pytest --cache-clear -n 2 --dist loadgroup "$@" && exit
status=$?
failed=$(python -c 'import json, sys; print(len(json.load(open(sys.argv[1]))))' "$again" 2>/dev/null || echo 0)
if [ "$status" != 1 ] || [ "$failed" = 0 ] || [ "$failed" -gt 5 ]; then exit "$status"; fi
echo "UNSTEADY: $failed failed among the others and are asked again alone:"
cat "$again"
pytest --last-failed --last-failed-no-failures none "$@"
