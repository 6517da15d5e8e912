#!/usr/bin/env bash
# Runs the tests: sets everything up, then calls pytest.
#
#   bash tests/run.sh [--accelerator=cpu|cuda|tpu] [PYTEST ARGUMENTS ...]
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
accelerator=cpu
if [[ "${1:-}" == --accelerator=* ]]; then
  accelerator="${1#--accelerator=}"
  shift
fi
bash "$repo/launch/setup_env.sh" "$accelerator" sidecar,test
cd "$repo"
# Two processes: most of the time is compilation, which uses one core. Tests of one file stay together and share its fixtures.
exec .venv/bin/python -m pytest -q --durations=15 -n 2 --dist loadfile "${@:-tests}"
