#!/usr/bin/env bash
# Server and learner on one GPU: SmolLM2-135M learns to add two-digit numbers. usage: run.sh MODEL_FOLDER [OUT_FOLDER]
# Needs python3 with torch, transformers, httpx and safetensors. Settings: GROUPER (the binary), DEVICE, STEPS, DTYPE, GROUPS_A_STEP, G, LR, SEED.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
model=$1 out=${2:-smollm2-run}
grouper=${GROUPER:-$root/target/release/grouper} device=${DEVICE:-cuda:0}
mkdir -p "$out"
socket=$(mktemp -d)/control

transport=()
[ "$device" = cpu ] || transport=(--control-socket "$socket")
"$grouper" serve "$model" --device "$device" --port 0 --max-model-len 512 --gpu-memory-utilization 0.3 \
  --data-dir "$(mktemp -d)" "${transport[@]}" >"$out/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
for _ in $(seq 1200); do
  url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$out/server.log" | head -n 1 || true)
  [ -n "$url" ] && break
  kill -0 $server 2>/dev/null || { cat "$out/server.log"; exit 1; }
  sleep 0.1
done
[ -n "$url" ] || { echo "the server did not come up" >&2; exit 1; }

python3 "$root/examples/learner/grpo.py" --url "$url" "${transport[@]}" --model "$model" --tasks "$root/examples/smollm2/tasks.py" \
  --device "$device" --dtype "${DTYPE:-bfloat16}" --tolerance 0.1 --max-tokens 16 --lr "${LR:-1e-5}" --num-groups "${GROUPS_A_STEP:-64}" \
  --num-generations "${G:-16}" --micro-batch "${MICRO_BATCH:-256}" --steps "${STEPS:-150}" --eval-every "${EVAL_EVERY:-10}" \
  --until 0.95 --seed "${SEED:-0}" | tee "$out/seed-${SEED:-0}.jsonl"
