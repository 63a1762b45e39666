# shellcheck shell=bash
# Sourced by the scripts of this folder. prepare_environment makes .venv (or $2) in the checkout and installs
# vilau_jax with the extras named in $1, again only when setup.py or the extras change. Sets $PYTHON.

find_python() {
  local name names=(python3 python3.13 python3.12 python3.11 python)
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")
  for name in "${names[@]}"; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "vilau_jax needs Python 3.11 or newer; none among: ${names[*]} (set PYTHON=/path/to/python)." >&2
  return 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# make_venv DIR BASE: an environment with pip, made with the Python BASE unless it is there already.
make_venv() {
  local venv=$1 base=$2 has wanted
  if [ ! -x "$venv/bin/python" ]; then
    echo "== making $venv with $("$base" --version)"
    # Colab and bare Debian have pip, but not what a venv makes its own from.
    "$base" -m venv "$venv" 2>/dev/null || {
      "$base" -m venv --without-pip "$venv" &&
        "$base" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check pip
    } || {
      echo "'$base -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
      return 1
    }
  fi
  has=$(version_of "$venv/bin/python") wanted=$(version_of "$base")
  if [ -n "${PYTHON:-}" ] && [ "$has" != "$wanted" ]; then
    echo "$venv has Python $has, $base is $wanted: remove $venv to make it anew, or set another PYTHON" >&2
    return 1
  fi
  # One whose making was interrupted has no pip yet; uv's never has.
  "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$venv/bin/python" -m ensurepip > /dev/null 2>&1 ||
    "$base" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check pip || {
    echo "$venv has no pip, and none could be put into it: remove $venv and start again" >&2
    return 1
  }
}

prepare_environment() {
  local extras=$1 venv=${2:-.venv} base stamp
  base=$(find_python)
  make_venv "$venv" "$base"
  PYTHON=$PWD/$venv/bin/python
  stamp=$venv/installed-$extras
  if [ ! -f "$stamp" ] || [ setup.py -nt "$stamp" ]; then
    echo "== installing vilau_jax[$extras] into $venv (a few minutes the first time)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
    touch "$stamp"
  fi
}
