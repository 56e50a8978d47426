#!/usr/bin/env bash
# Start one real SGLang worker on CPU, with a model made by make_model.py, in the foreground.
# usage: VENV=DIR MODEL=DIR [PORT=30001] launch.sh [further sglang flags]
# Takes calls after 14 to 16 s; 1.3 GB; about 500 tokens/s alone, 3,500 at 16 concurrent calls.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# Stand-ins for the CUDA-only modules that SGLang imports at start.
export PYTHONPATH="$here/shim${PYTHONPATH:+:$PYTHONPATH}"
export SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TORCHDYNAMO_DISABLE=1
# Without --sleep-on-idle an idle worker keeps a whole core busy.
exec "${VENV:?the virtual environment made by install.sh}/bin/python" -m sglang.launch_server \
  --model-path "${MODEL:?the model folder made by make_model.py}" --served-model-name tiny \
  --host 127.0.0.1 --port "${PORT:-30001}" --device cpu --attention-backend torch_native --dtype float32 \
  --max-total-tokens 8192 --max-running-requests 16 --context-length 2048 --sleep-on-idle "$@"
