#!/usr/bin/env bash
# A training job on a GKE cluster with TPUs, through xpk (https://github.com/AI-Hypercomputer/xpk).
#   PROJECT=me CLUSTER=mine bash launch/gke_xpk.sh --config=configs/pretrain_7b_256.py --workdir=gs://bucket/run
# Arguments go to `vilau train`. A cluster is made with `xpk cluster create --cluster=$CLUSTER --tpu-type=$TYPE ..`.
# `STOP=1` deletes the workload: its pods get SIGTERM, save and end. Restarted pods go on from the last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PROJECT=${PROJECT:?set PROJECT to your Google Cloud project}
CLUSTER=${CLUSTER:?set CLUSTER to the name of a cluster made with xpk}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-vilau-$(id -un)}                 # of the workload
TYPE=${TYPE:-v5litepod-256}
IMAGE=${IMAGE:-python:3.12}                   # xpk puts this checkout on top of it
RESTARTS=${RESTARTS:-100}                     # after preemptions and failures
GRACE=${GRACE:-120}                           # seconds from SIGTERM to SIGKILL: time to save
STOP=${STOP:-}

workload() { xpk workload "$@" --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --workload="$NAME"; }

if [ -n "$STOP" ]; then
  workload delete
  exit
fi

# exec: the training process itself gets the pod's SIGTERM. xpk starts a workload again
# for exit codes from 127 on and those named here: 75 is a process that gave up waiting for another.
command="pip install --quiet -e '.[gcs]' 'jax[tpu]' &&"
command+=" exec python -m vilau_jax.cli.main train --distributed=auto --preempted_exit=143$(printf ' %q' "$@")"
workload create --tpu-type="$TYPE" --base-docker-image="$IMAGE" --script-dir="$PWD" \
  --max-restarts="$RESTARTS" --restart-on-exit-codes=75 --termination-grace-period-seconds="$GRACE" --command="$command"
echo "watch it:  xpk workload list --cluster=$CLUSTER --project=$PROJECT --zone=$ZONE"
