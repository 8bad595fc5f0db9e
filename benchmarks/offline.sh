#!/usr/bin/env bash
# Run benchmarks/gpu.py on a GPU machine that reaches no package registry.
#
#   benchmarks/offline.sh collect WHEELS [PYTHON_VERSION]   where there is one: fills a folder
#   benchmarks/offline.sh run WHEELS OUT [gpu.py options]   on the GPU machine, in a checkout
#
# The GPU machine needs Python with torch (a CUDA build), onnx, onnxruntime, onnxscript,
# tensorboard, rich, typer and pytest; everything else is in the folder. PYTHON_VERSION is that
# machine's, 3.12 unless given. warp-lang's wheel is large (149 MB); to carry it in pieces:
# split -b 40M, and cat the pieces into one file before `run`.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

NEEDED="mujoco mujoco-core mujoco-warp warp-lang gymnasium farama-notifications cloudpickle
    stable-baselines3 pydantic pydantic-core annotated-types typing-inspection typing-extensions
    absl-py etils glfw pyopengl zipp pyyaml"

collect() {
    local wheels=$1 version=${2:-3.12} platforms=() name pin
    for glibc in 17 24 27 28 31 34 35 39; do
        platforms+=(--platform "manylinux_2_${glibc}_x86_64")
    done
    mkdir -p "$wheels"
    for name in $NEEDED; do
        pin=$(grep -iE "^${name//[-_]/[-_]}==" constraints.txt | head -1)
        "$PYTHON" -m pip download -q --no-deps --only-binary=:all: -d "$wheels" \
            --python-version "$version" --implementation cp \
            --platform manylinux2014_x86_64 --platform manylinux1_x86_64 "${platforms[@]}" "$pin"
    done
    rm -rf build/lib  # or modules that are no more would go into the wheel
    "$PYTHON" -m pip wheel -q --no-deps -w "$wheels" .
    ls -lh "$wheels"
}

run() {
    local wheels=$1 out=$2 site
    shift 2
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    PYTHONPATH=$site "$PYTHON" benchmarks/gpu.py --out "$out" "$@"
}

case "${1:-}" in
    collect | run) "$@" ;;
    *) sed -n '2,12p' "$0" >&2; exit 2 ;;
esac
