#!/usr/bin/env bash
# The whole of VILA-U on this machine: pictures in, a model that reads, writes, draws and animates out.
#   bash launch/quickstart.sh            15 to 25 minutes of computing on two cores
#   bash launch/quickstart.sh --smoke    every stage in three minutes, to see that all is well; no quality
#   bash launch/quickstart.sh --long     about an hour, better pictures
#   --seed=N, --output=DIR (default runs/quickstart, runs/quickstart-smoke, runs/quickstart-long)
# Interrupt it whenever you like: started again with the same arguments it continues where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

size=default seed=0 output=
for argument in "$@"; do
  case $argument in
    --smoke) size=smoke ;;
    --long) size=long ;;
    --seed=*) seed=${argument#*=} ;;
    --output=*) output=${argument#*=} ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "unknown argument '$argument'; see --help" >&2; exit 2 ;;
  esac
done
suffix=$([ "$size" = default ] || echo "-$size")
run=${output:-runs/quickstart$suffix}
config_size=$([ "$size" = default ] || echo ":$size")
case $size in
  smoke) evaluation=(--smoke) scenes=(--scenes=240 --videos=60 --test_scenes=48 --test_videos=16) vqa=(--limit=200) ;;
  *) evaluation=() scenes=() vqa=() ;;
esac

source launch/environment.sh
prepare_environment quickstart
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Transparent huge pages for malloc: a fifth less time a step on CPUs; other C libraries ignore it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
mkdir -p "$run"
data=$run/data

# stage NAME COMMAND...: runs one `vilau` command and notes how long it computed, also when interrupted.
stage() {
  local name=$1 began
  shift
  echo
  echo "== $name: vilau $*"
  began=$("$PYTHON" -c "import time; print(time.time())") # not every date has fractions
  current=$name current_began=$began
  "$PYTHON" -m vilau_jax.cli.main "$@"
  note_time
}
note_time() {
  [ -n "${current:-}" ] || return 0
  printf '{"stage": "%s", "seconds": %s}\n' "$current" \
    "$("$PYTHON" -c "import time; print(round(time.time() - $current_began, 2))")" >> "$run/times.jsonl"
  current=
}
trap note_time EXIT

train=(--preempted_exit=1 --config.seed="$seed" --config.data.root="$data" --config.runs="$run")
stage data data import emoji --output="$data/emoji" --seed="$seed" ${scenes[@]+"${scenes[@]}"}
stage data data import easy-vqa --output="$data/easy_vqa" ${vqa[@]+"${vqa[@]}"}
stage tower train --config="configs/quickstart_tower.py$config_size" --workdir="$run/tower" "${train[@]}"
for part in emoji/train_scenes emoji/train_videos easy_vqa/train; do
  stage tokenize tokenize --model="$run/tower" --records="$data/$part" --output="$run/codes/$part"
done
stage lm train --config="configs/quickstart_lm.py$config_size" --workdir="$run/lm" "${train[@]}"
stage finetune train --config="configs/quickstart_finetune.py$config_size" --workdir="$run/finetune" "${train[@]}"
stage evaluate evaluate quickstart --model="$run/finetune" --data="$data" --runs="$run" --output="$run" \
  --seed="$seed" ${evaluation[@]+"${evaluation[@]}"}

cat <<DONE

Done. Look at    $run/report.html   (figures: $run/report.json)
The model is in  $run/finetune

What to type next:
  source .venv/bin/activate
  vilau generate image --model=$run/finetune --prompt="two foxes on a blue background" --num=4 --output=out
  vilau chat --model=$run/finetune --image=out/000000.png "How many foxes are there?"
  vilau reconstruct --model=$run/finetune --image=out/000000.png --output=out
DONE
