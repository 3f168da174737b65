#!/usr/bin/env bash
# Measures all that this machine can, side by side with the others, and writes one table: benchmarks/results/table.md
# and the README's. About 40 minutes on two cores; nothing else should run meanwhile. Names of parts measure only these.
set -euo pipefail
cd "$(dirname "$0")/.."
. ./setup.sh requirements-dev.txt
export PATH="$PWD/.venv/bin:$PATH"
python -m modules.starter
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(limit gguf serving decode chat_latency speculative alternatives page gpu)
for part in "${parts[@]}"; do
    echo "== $part"
    python -m "benchmarks.$part" || echo "$part was not measured."
done
python -m benchmarks.table
