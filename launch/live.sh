#!/usr/bin/env bash
# Compares with other packages as they are: lmms-eval runs its own tasks on vilau_jax, FID is that of
# pytorch-fid, clean-fid, torch-fidelity and torchvision, VQAScore that of t2v-metrics (with a tiny
# model). Their requirements exclude some of ours, so they get an environment of their own, .venv-live
# (8 GB; PyTorch with torchvision). VILAU_LIVE_VENV puts it elsewhere. Nothing may be skipped here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

venv=${VILAU_LIVE_VENV:-.venv-live}
python=$venv/bin/python
stamp=$venv/installed
if [ ! -f "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  echo "== installing what is compared with into $venv (several minutes the first time)"
  base=$(find_python)
  make_venv "$venv" "$base"
  # torchvision loads only beside the torch it was built for.
  "$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
  "$python" -m pip install --quiet --disable-pip-version-check -e ".[test,eval,lmms,parity-fid]"
  # By itself, with the transformers of its time: the rest of what it asks for is of other models.
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
    --target "$venv/t2v" t2v-metrics==3.0 transformers==4.49.0 tokenizers==0.21.4 \
    huggingface-hub==0.30.2
  touch "$stamp"
fi

log=$(mktemp)
"$python" -m pytest -rs -m "not nightly" \
  tests/evaluate/test_{fid,generation_rules,lmms_eval,lmms_live,every_vector,judge,vqascore_live}.py | tee "$log"
if grep -q SKIPPED "$log"; then
  echo "something was skipped; remove $stamp to install again" >&2
  exit 1
fi
