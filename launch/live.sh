#!/usr/bin/env bash
# Compares with other packages as they are: lmms-eval runs its own tasks on vilau_jax, and FID is
# that of pytorch-fid, clean-fid, torch-fidelity and torchvision. Their requirements exclude some of
# ours, so they get an environment of their own, .venv-live (7 GB; PyTorch with torchvision).
# VILAU_LIVE_VENV puts it elsewhere. Nothing may be skipped here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

venv=${VILAU_LIVE_VENV:-.venv-live}
python=$venv/bin/python
stamp=$venv/installed
if [ ! -f "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  echo "== installing what is compared with into $venv (several minutes the first time)"
  [ -x "$python" ] || "$(find_python)" -m venv "$venv"
  # torchvision loads only beside the torch it was built for.
  "$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
  "$python" -m pip install --quiet --disable-pip-version-check -e ".[test,eval,lmms,parity_fid]"
  touch "$stamp"
fi

log=$(mktemp)
"$python" -m pytest -rs tests/evaluate/test_{fid,lmms_eval,lmms_live,every_vector,judge}.py | tee "$log"
if grep -q SKIPPED "$log"; then
  echo "something was skipped; remove $stamp to install again" >&2
  exit 1
fi
