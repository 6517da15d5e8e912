#!/usr/bin/env bash
# Makes or updates the virtual environment .venv of this clone. Does nothing when it is up to date.
#
#   bash launch/setup_env.sh [cpu|cuda|tpu] [EXTRAS]        EXTRAS: of setup.py, for example "sidecar,test"
#
# PYTHON=/path/to/python3.12 chooses the interpreter; otherwise the first Python of 3.11 or later that is found.
set -euo pipefail

accelerator="${1:-cpu}"
extras="${2:-sidecar}"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$repo/.venv"
torch="torch==2.13.0"
cpu_index="https://download.pytorch.org/whl/cpu"

case "$accelerator" in
  cpu) ;;
  cuda | tpu) extras="$extras,$accelerator" ;;
  *) echo "error: unknown accelerator '$accelerator'; it can be cpu, cuda or tpu." >&2; exit 2 ;;
esac

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or later was found; install one, or name it: PYTHON=/path/to/python3.12 bash $0" >&2
  exit 2
}

# What the environment is made from; the stamp is written last, so an interrupted installation is taken up again.
wanted="$torch $(sha256sum < "$repo/setup.py")"
stamp="$venv/.installed-$accelerator-${extras//,/-}"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
  exit 0
fi

if [[ ! -x "$venv/bin/pip" ]]; then
  python="$(find_python)"
  echo "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || {
    echo "error: '$python -m venv' failed; on Debian and Ubuntu install the package python3-venv." >&2
    exit 2
  }
fi

echo "installing wr1_jax[$extras] (a minute or two)"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
index=()
if [[ "$accelerator" != cuda ]]; then
  # The CPU build of torch is a tenth of the default one, but is not on PyPI.
  if "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null; then
    index=(--extra-index-url "$cpu_index")
  fi
fi
if [[ "$accelerator" == cuda ]] && "$venv/bin/python" -c 'import torch; assert "+cpu" in torch.__version__' 2>/dev/null; then
  "${pip[@]}" uninstall --yes torch  # an earlier CPU set-up: pip would take it for the version that is wanted
fi
"${pip[@]}" install ${index[@]+"${index[@]}"} "$torch"
"${pip[@]}" install --editable "${repo}[$extras]"
echo "$wanted" > "$stamp"
