#!/usr/bin/env bash
# Runs the tests on a machine with nothing but Python >= 3.11 and pip. Arguments go to pytest:
#   bash launch/test.sh                        all default tests, in two processes
#   bash launch/test.sh tests/models -k llama  some of them
#   bash launch/test.sh -n 0 --pdb             in this process, to debug
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment test
# A process that crashes ends the run: with another in its place, loadfile waits for ever.
exec "$PYTHON" -m pytest -n 2 --dist loadfile --max-worker-restart=0 "$@"
