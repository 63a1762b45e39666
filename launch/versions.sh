#!/usr/bin/env bash
# Runs tests with the newest versions, beside those of .venv: Python 3.13, jax 0.12.0.1, flax 0.12.12.
#   bash launch/versions.sh                 all default tests, in two processes
#   bash launch/versions.sh tests/convert   some of them; arguments go to pytest
# PYTHON=/path/to/python3.13 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

newest=(jax==0.12.0.1 flax==0.12.12)
for python in "${PYTHON:-}" python3.13 "$HOME"/.pyenv/versions/3.13*/bin/python python3; do
  [ -n "$python" ] || continue
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null && break
  python=
done
[ -n "$python" ] || { echo "needs Python 3.13; set PYTHON=/path/to/python3.13" >&2; exit 2; }
venv=.venv-newest
make_venv $venv "$python"
if [ ! -f $venv/installed ] || [ setup.py -nt $venv/installed ]; then
  echo "== installing vilau_jax[test] with ${newest[*]} into $venv"
  $venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test]" "${newest[@]}"
  touch $venv/installed
fi
$venv/bin/python -c 'import sys, jax, flax; print("Python", sys.version.split()[0], "jax", jax.__version__, "flax", flax.__version__)'
exec $venv/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart=0 "$@"
