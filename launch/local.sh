#!/usr/bin/env bash
# Trains on this machine: sets everything up, then runs the trainer.
#
#   bash launch/local.sh [--accelerator=cpu|cuda|tpu] [[--config=]CONFIG] [--workdir=DIR] [--config.KEY=VALUE ...]
#
# CONFIG defaults to configs/tiny.py, --workdir to runs/ and the config's name. Running the same command again goes on from
# the last checkpoint.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
accelerator=cpu
if [[ "${1:-}" == --accelerator=* ]]; then
  accelerator="${1#--accelerator=}"
  shift
fi
config="$repo/configs/tiny.py"
if [[ $# -gt 0 && ( "$1" != --* || "$1" == --config=* ) ]]; then
  config="${1#--config=}"
  shift
fi
workdir=("--workdir=$repo/runs/$(basename "$config" .py)")
for argument in "$@"; do
  case "$argument" in --workdir | --workdir=*) workdir=() ;; esac
done

bash "$repo/launch/setup_env.sh" "$accelerator" sidecar
exec "$repo/.venv/bin/python" -m wr1_jax.train "--config=$config" ${workdir[@]+"${workdir[@]}"} "$@"
