#!/usr/bin/env bash
# Installs the wheel outside the checkout into separate environments, as users do, and runs one job across them:
#   client   the base install, without torch, submits; with [report] it renders the page
#   server   the [server] extra serves
#   reader   torch and nothing else opens the result and counts the zeros that the report claims
# Run by `make package-check`. Reaches the package index, so it is not part of `make test`.
set -euo pipefail

python=${1:?usage: package_check.sh PYTHON}
repo=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
server_pid=
trap 'if [ -n "$server_pid" ]; then kill "$server_pid" 2>/dev/null || true; wait "$server_pid" 2>/dev/null || true; fi
      rm -rf "$work"' EXIT
torch=$(grep '^torch==' "$repo/constraints.txt")
pip() { "$work/$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"; }
log() { printf '%s\n' "package-check: $*"; }

log "building the wheel"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work/wheel" "$repo"
wheel=$(echo "$work"/wheel/pruning_service-*.whl)

log "installing it into separate environments"
for name in client server reader; do "$python" -m venv "$work/$name"; done
pip client "$wheel"
pip server "$torch"
pip server "$wheel[server]"
pip reader "$torch"
cd "$work"

log "the client's environment has no torch, and says what the server would need"
if client/bin/python -c 'import torch' 2>/dev/null; then log "FAILED: torch in the client's environment"; exit 1; fi
client/bin/prune --help >/dev/null
status=0; client/bin/pruning-server --data-dir data 2>server_in_client.txt || status=$?
[ "$status" = 2 ] && grep -q "pip install 'pruning-service\[server\]'" server_in_client.txt ||
  { log "FAILED: pruning-server without its extra: exit $status"; cat server_in_client.txt; exit 1; }

log "one job from client to server"
server/bin/python - <<'PY'
import torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)).eval()
torch.jit.save(torch.jit.trace(net, torch.zeros(2, 8)), "model.pt")
x = torch.randn(300, 8)
torch.save((x, net(x).argmax(1)), "data.pt")
import numpy
numpy.savez("data.npz", inputs=x.numpy(), targets=net(x).argmax(1).numpy())
PY
sandbox=$(server/bin/python -P -m pruning_server.sandbox check >/dev/null || echo --insecure-no-sandbox)
server/bin/pruning-server --address 127.0.0.1:0 --metrics-address 127.0.0.1:0 --data-dir data $sandbox \
  >ready.json 2>server.log &
server_pid=$!
for _ in $(seq 100); do [ -s ready.json ] && break; sleep 0.1; done
address=$(server/bin/python -c 'import json; print(json.loads(open("ready.json").readline())["address"])')
client/bin/prune submit model.pt --validation data.npz --strategy static --sparsity 0.5 -o pruned.pt --report report.json \
  --server "$address" --json >result.json || { cat result.json server.log; exit 1; }

log "torch alone opens the result"
reader/bin/python -W ignore - <<'PY'
import json, sys, torch
report = json.load(open("report.json"))
tensors = dict(torch.jit.load("pruned.pt").state_dict())
claimed = counted = 0
for layer in report["layers"]:
    tensor = tensors[layer["name"]]
    claimed += round(layer["sparsity"] * tensor.numel())
    counted += int((tensor == 0).sum())
print(f"package-check: the report claims {claimed} zeros, the archive has {counted}")
sys.exit(not (claimed == report["strategy"]["pruned_weights"] == counted > 0))
PY
log "the page says what it needs, and then needs nothing else"
status=0; client/bin/prune report report.json -o report.html 2>page.txt || status=$?
[ "$status" = 2 ] && grep -q "pip install 'pruning-service\[report\]'" page.txt ||
  { log "FAILED: a page without its extra: exit $status"; cat page.txt; exit 1; }
pip client "$wheel[report]"
client/bin/prune report report.json -o report.html
grep -q '<svg class="plot"' report.html && grep -q 'prefers-color-scheme: dark' report.html ||
  { log "FAILED: the page is not whole"; exit 1; }

log "passed"
