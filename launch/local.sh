#!/usr/bin/env bash
# Several processes on this machine train together, as a pod would: to try things out, or one process a GPU.
#   PROCESSES=2 bash launch/local.sh --config=configs/quickstart_tower.py --workdir=runs/two
# Arguments go to `vilau train`. Ctrl-C or SIGTERM saves and stops all; the same command goes on. If one process
# dies, the others are ended: run the same command again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PROCESSES=${PROCESSES:-2}                     # how many
DEVICES=${DEVICES:-1}                         # CPU devices of each process; GPUs are shared out one a process
PLATFORM=${JAX_PLATFORMS:-cpu}                # cpu or cuda
PYTHON=${PYTHON:-$PWD/.venv/bin/python}       # with vilau_jax installed
LOGS=${LOGS:-}                                # directory for process-N.log; empty: all to this terminal
GRACE=${GRACE:-120}                           # seconds from SIGTERM to SIGKILL

port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
pids=()
start() {
  local index=$1 environment=(JAX_PLATFORMS="$PLATFORM" JAX_NUM_CPU_DEVICES="$DEVICES")
  shift
  [ "$PLATFORM" = cpu ] || environment+=(CUDA_VISIBLE_DEVICES="$index")
  exec env "${environment[@]}" "$PYTHON" -m vilau_jax.cli.main train \
    --distributed="localhost:$port,$index,$PROCESSES" "$@"
}

for ((i = 0; i < PROCESSES; i++)); do
  if [ -n "$LOGS" ]; then
    mkdir -p "$LOGS"
    (start "$i" "$@") > "$LOGS/process-$i.log" 2>&1 &
  else
    (start "$i" "$@") &
  fi
  pids+=($!)
done

tell() { kill -s "$1" "${pids[@]}" 2> /dev/null || true; }
trap 'tell TERM' TERM
trap 'tell INT' INT

code=0 left=$PROCESSES watch=
while ((left > 0)); do
  ended=0 result=0
  wait -n -p ended "${pids[@]}" || result=$?
  if [ -z "${ended:-}" ] || [ "$ended" = 0 ]; then continue; fi # a signal woke us
  left=$((left - 1))
  rest=()
  for pid in "${pids[@]}"; do [ "$pid" = "$ended" ] || rest+=("$pid"); done
  pids=("${rest[@]}")
  if ((result != 0 && code == 0)); then
    code=$result
    ((left == 0)) || echo "launch/local.sh: a process ended with $result; ending the others" >&2
    tell TERM
    if ((left > 0)); then # with no hold on our output, which a pipe would wait for
      (sleep "$GRACE"; kill -KILL "${pids[@]}") > /dev/null 2>&1 &
      watch=$!
    fi
  fi
done
[ -z "$watch" ] || kill "$watch" 2> /dev/null || true # process numbers are given out again
exit "$code"
