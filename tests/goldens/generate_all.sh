#!/bin/sh
# Writes all goldens anew. Usage: tests/goldens/generate_all.sh [python]
set -eu
python=${1:-python3}
cd "$(dirname "$0")"
for generator in */generate.py; do
    echo "== $generator"
    "$python" "$generator"
done
"$python" tokenizer/saved.py
# tokenizer/slow.py takes transformers 4.57, which has slow tokenizers, in an environment of its own.
