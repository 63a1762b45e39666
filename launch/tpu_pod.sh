#!/usr/bin/env bash
# A training job on a TPU VM pod slice: makes the slice if it is not there, installs on all workers, runs on all.
#   PROJECT=my-project bash launch/tpu_pod.sh --config=configs/pretrain_7b_256.py --workdir=gs://bucket/run
# Arguments go to `vilau train`. Its words are in ~/vilau.log of every worker and are shown here; Ctrl-C only ends the
# showing. `STOP=1` saves and stops the workers, `DELETE=1` deletes the slice. After a preemption the same command makes a
# new slice and goes on from the last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PROJECT=${PROJECT:?set PROJECT to your Google Cloud project}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-vilau}                           # of the slice
TYPE=${TYPE:-v5litepod-256}                   # gcloud compute tpus accelerator-types list
VERSION=${VERSION:-v2-alpha-tpuv5-lite}       # of the VM's software; fits TYPE
SPOT=${SPOT:-1}                               # 1: cheaper, and may be taken away
EXTRAS=${EXTRAS:-gcs}                         # of vilau_jax
PYTHON=${PYTHON:-3.12}                        # version; uv brings it, as images have older ones
STOP=${STOP:-} DELETE=${DELETE:-}

tpu() { gcloud compute tpus tpu-vm "$@" --project="$PROJECT" --zone="$ZONE"; }
everywhere() { tpu ssh "$NAME" --worker=all --command="$1"; }
state() { tpu describe "$NAME" --format='value(state)' 2> /dev/null || true; }

if [ -n "$DELETE" ]; then
  tpu delete "$NAME" --quiet
  exit
fi
if [ -n "$STOP" ]; then
  everywhere 'pkill -TERM -f "[v]ilau_jax.cli.main" || true' # the brackets: not this shell itself
  exit
fi

case $(state) in
  READY) ;;
  PREEMPTED | TERMINATED | STOPPED) tpu delete "$NAME" --quiet ;;&
  *)
    options=()
    [ "$SPOT" = 0 ] || options+=(--spot)
    tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" "${options[@]}"
    ;;
esac

# The checkout as git knows it, uncommitted changes included, to ~/vilau_jax on every worker.
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -czf "$archive"
tpu scp "$archive" "$NAME:vilau_jax.tar.gz" --worker=all
everywhere "mkdir -p vilau_jax && tar -xzf vilau_jax.tar.gz -C vilau_jax && cd vilau_jax &&
  python3 -m pip install --quiet --user uv && export PATH=\$HOME/.local/bin:\$PATH && uv venv --quiet --allow-existing \
  --python $PYTHON .venv && uv pip install --quiet --python .venv/bin/python -e '.[$EXTRAS]' 'jax[tpu]'"

# Quoted once for the remote shell. A run is started once; a second start is refused by the workdir's lock.
arguments=$(printf ' %q' "$@")
everywhere "cd vilau_jax && { nohup .venv/bin/python -m vilau_jax.cli.main train --distributed=auto$arguments \
  >> ~/vilau.log 2>&1 < /dev/null & } && trainer=\$! && tail -n 0 -F --pid=\$trainer ~/vilau.log; wait \$trainer"
