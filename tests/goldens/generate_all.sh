#!/bin/sh
# Writes all goldens anew. Usage: tests/goldens/generate_all.sh [python]
set -eu
python=${1:-python3}
cd "$(dirname "$0")"
for generator in */generate.py; do
    echo "== $generator"
    "$python" "$generator"
done
