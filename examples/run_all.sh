#!/usr/bin/env bash
# Every example as its README says, and that each notices a wrong number. Needs an environment with
# onnx_attn[test], Node 20 or newer with npm, and Chromium, which it installs on Debian as root.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium >/dev/null && [ -z "${CHROMIUM:-}" ]; then
  apt-get update -q && apt-get install -yq chromium
fi
exec python -m pytest tests/examples/test_examples.py -m "runtimes or not runtimes" "$@"
