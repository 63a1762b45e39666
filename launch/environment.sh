# shellcheck shell=bash
# Sourced by the scripts of this folder: makes .venv (or $2) in the checkout and installs vilau_jax with
# the extras named in $1. Sets $PYTHON. Installs again only when setup.py or the extras change.

find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    [ -n "$name" ] || continue
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "vilau_jax needs Python 3.11 or newer; none was found (set PYTHON=/path/to/python)." >&2
  return 1
}

prepare_environment() {
  local extras=$1 venv=${2:-.venv} base stamp
  base=$(find_python)
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
  PYTHON=$PWD/$venv/bin/python
  # One whose making was interrupted has no pip yet; uv's never has.
  "$PYTHON" -m pip --version > /dev/null 2>&1 || "$PYTHON" -m ensurepip > /dev/null 2>&1 ||
    "$base" -m pip --python "$PYTHON" install --quiet --disable-pip-version-check pip || {
    echo "$venv has no pip, and none could be put into it: remove $venv and start again" >&2
    return 1
  }
  stamp=$venv/installed-$extras
  if [ ! -f "$stamp" ] || [ setup.py -nt "$stamp" ]; then
    echo "== installing vilau_jax[$extras] into $venv (a few minutes the first time)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
    touch "$stamp"
  fi
}
