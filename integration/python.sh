#!/usr/bin/env bash
# Prints the path of a Python with what integration/FOLDER/requirements.txt names, and makes it first when it
# is not there: a virtual environment in ~/.cache/merit-python, one for each content of that file.
#
#   integration/python.sh [FOLDER]     serdes (default): Confluent's client; envoy: an Envoy beside that Python
set -euo pipefail

requirements=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/${1:-serdes}/requirements.txt
cache=${PYTHON_CACHE:-$HOME/.cache/merit-python}
folder=$cache/$(sha256sum "$requirements" | cut -c 1-16)

if [ ! -e "$folder/.complete" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/.lock"; flock 9 # two tests starting at once install only once
  if [ ! -e "$folder/.complete" ]; then
    rm -rf "$folder"
    python3 -m venv "$folder" >&2 || { echo "python3 with venv is missing: install python3-venv" >&2; exit 1; }
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$requirements" >&2
    "$folder/bin/pip" check >&2
    touch "$folder/.complete"
  fi
fi
echo "$folder/bin/python"
