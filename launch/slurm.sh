#!/usr/bin/env bash
# A training job on a Slurm cluster with GPUs, one task a GPU. The variables below, then:
#   sbatch --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh --config=configs/X.py --workdir=DIR
# Arguments go to `vilau train`. Slurm sends SIGTERM two minutes before the time limit, and at a preemption when the
# partition has a GraceTime; the run saves, and the job queues itself again until it is finished. A job that fails is
# not repeated.
#SBATCH --job-name=vilau
#SBATCH --output=vilau-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

CHECKOUT=${CHECKOUT:-$SLURM_SUBMIT_DIR}       # of vilau_jax, on a file system that all nodes see, like the workdir
PYTHON=${PYTHON:-$CHECKOUT/.venv/bin/python}  # with vilau_jax and jax[cuda13] installed
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}   # cpu: to try it on a cluster without GPUs
PREEMPTED=85                                  # what `vilau train` says when it was stopped and is not finished
STARTING=143                                  # SIGTERM met a task that was still starting

cd "$CHECKOUT"
code=0
# --wait: when one task dies, the others would wait for it. Not --kill-on-bad-exit: stopped tasks end a moment apart,
# and the first would have the others killed before they can say PREEMPTED.
srun --kill-on-bad-exit=0 --wait=60 \
  "$PYTHON" -m vilau_jax.cli.main train --distributed=auto --preempted_exit="$PREEMPTED" "$@" || code=$?
if [ "$code" = "$PREEMPTED" ] || [ "$code" = "$STARTING" ]; then
  echo "job $SLURM_JOB_ID was stopped before its end; it queues again, to go on from its last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
