#!/usr/bin/env bash
# Makes or updates .venv-rewards, the virtual environment of the reward process for the paper's models: Depth Anything 3
# with gsplat, Qwen3-VL and HPSv3. Does nothing when it is up to date.
#
#   bash launch/install_rewards.sh [cpu|cuda]
#
# Then train with --config.rewards.python=.venv-rewards/bin/python. PYTHON=/path/to/python3.12 chooses the interpreter,
# VENV=/path/to/folder another place.
set -euo pipefail

accelerator="${1:-cpu}"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-$repo/.venv-rewards}"
torch="torch==2.13.0"
cpu_index="https://download.pytorch.org/whl/cpu"
# depth-anything-3 asks for numpy<2, an old moviepy, xformers, open3d and more, and evo for plotting libraries. What the
# networks themselves import is far less, and works with today's versions.
bare=("depth-anything-3==0.1.1" "evo==1.31.1")
libraries=(
  addict e3nn einops huggingface-hub jaxtyping ml-collections "numpy>=2" "omegaconf<3" opencv-python-headless pillow
  safetensors scipy tokenizers "transformers>=5,<6"
)

case "$accelerator" in
  cpu) ;;
  cuda) libraries+=("gsplat==1.5.3" ninja) ;;
  *) echo "error: unknown accelerator '$accelerator'; it can be cpu or cuda." >&2; exit 2 ;;
esac

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python from 3.11 to 3.13 was found; install one, or name it: PYTHON=/path/to/python3.12 bash $0" >&2
  exit 2
}

# gsplat compiles its CUDA kernels when they are first used; where that can be done now, the first run need not wait.
compile_kernels() {
  if ! command -v nvcc > /dev/null && [[ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]]; then
    echo "warning: there is no nvcc, with which gsplat compiles its CUDA kernels when it is first used. Install the CUDA" \
      "toolkit of the version that $torch was built for ($("$venv/bin/python" -c 'import torch; print(torch.version.cuda)'))" \
      "and put its bin folder on the PATH, or set CUDA_HOME." >&2
  elif ! command -v c++ > /dev/null; then
    echo "warning: there is no C++ compiler (c++), which gsplat needs to compile its CUDA kernels when it is first used;" \
      "on Debian and Ubuntu install the package g++." >&2
  elif "$venv/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    "$venv/bin/python" -c 'import gsplat.cuda._backend'
  else
    echo "note: PyTorch sees no GPU here, so gsplat will compile its kernels (minutes) when it is first used on one." >&2
  fi
}

# What the environment is made from; the stamp is written last, so an interrupted installation is taken up again.
wanted="$torch ${bare[*]} ${libraries[*]}"
stamp="$venv/.installed-$accelerator"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
  if [[ "$accelerator" == cuda ]]; then compile_kernels; fi
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

echo "installing what the reward models need into $venv (a few minutes)"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
index=()
if [[ "$accelerator" != cuda ]]; then
  # The CPU build of torch is a tenth of the default one, but is not on PyPI.
  if "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null; then
    index=(--extra-index-url "$cpu_index")
  fi
elif "$venv/bin/python" -c 'import torch; assert "+cpu" in torch.__version__' 2>/dev/null; then
  "${pip[@]}" uninstall --yes torch  # an earlier CPU set-up: pip would take it for the version that is wanted
fi
"${pip[@]}" install ${index[@]+"${index[@]}"} "$torch"
"${pip[@]}" install "${libraries[@]}"
"${pip[@]}" install --no-deps "${bare[@]}"
"$venv/bin/python" -W ignore -c 'import cv2, depth_anything_3.model.da3, depth_anything_3.model.gs_adapter, transformers'
if [[ "$accelerator" == cuda ]]; then compile_kernels; fi
echo "$wanted" > "$stamp"
