#!/usr/bin/env bash
# Run the ROCm image on this machine's AMD card and print what happens, to be pasted into an issue:
# `make smoke-amd`. The output has no key and no name of this machine.
#
#   IMAGE     bge-serverless:rocm
#   DOCKER    docker, or podman with its options
#   DEVICES   options that give the container the card
#
# The exit code is the number of failed steps.
set -uo pipefail
IMAGE=${IMAGE:-bge-serverless:rocm}
DOCKER=${DOCKER:-docker}
group() { getent group "$1" | cut -d: -f3; }
DEVICES=${DEVICES---device=/dev/kfd --device=/dev/dri -e HIP_VISIBLE_DEVICES=0 \
    --group-add $(group video) --group-add $(group render)}
OPTIONS="--rm --read-only --tmpfs /tmp --cap-drop=ALL --security-opt=no-new-privileges $DEVICES"
START_SECONDS=300
failed=0

# step TITLE COMMAND…: run it, show its output and its exit code.
step() {
    echo "== $1"
    shift
    "$@" 2>&1
    code=$?
    [ "$code" -eq 0 ] || { echo "-- exit code $code"; failed=$((failed + 1)); }
}

host() {
    uname -sr
    ls -ln /dev/kfd /dev/dri/render* || return
    echo "groups: video $(group video), render $(group render), of this user: $(id -G)"
    $DOCKER --version
}

card() {
    # shellcheck disable=SC2086  # options are several words
    $DOCKER run $OPTIONS --entrypoint python "$IMAGE" -c '
import torch
print("torch", torch.__version__, "ROCm", torch.version.hip)
assert torch.cuda.is_available(), "PyTorch sees no GPU"
card = torch.cuda.get_device_properties(0)
print(card.name, getattr(card, "gcnArchName", ""), card.total_memory >> 20, "MiB")
x = torch.randn(2048, 2048, device="cuda", dtype=torch.float16)
error = ((x @ x).float() - x.float() @ x.float()).abs().max().item()
print(f"a product in fp16 differs from fp32 by {error:.2f}")
assert error < 1'
}

answer() {
    # shellcheck disable=SC2086
    $DOCKER run $OPTIONS -e BGE_TRACE_START=1 "$IMAGE" test \
        '{"input": {"texts": ["море", "sea"], "return_sparse": true}}' | cut -c1-400
}

# get PATH [BODY]: a request to the server, from inside its container.
get() {
    $DOCKER exec "$container" python -c '
import sys, time, urllib.request
path, body = sys.argv[1], sys.argv[2].encode() or None
request = urllib.request.Request("http://127.0.0.1:8000" + path, body, {"Content-Type": "application/json"})
start = time.perf_counter()
reply = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120).read()
print(f"{1e3 * (time.perf_counter() - start):.0f} ms", path, reply[:700].decode())' "$1" "${2:-}"
}

serve() {
    # shellcheck disable=SC2086
    container=$($DOCKER run -d $OPTIONS -e BGE_INSECURE=1 "$IMAGE" serve) || return
    trap '$DOCKER rm -f "$container" > /dev/null' EXIT
    waited=0
    until $DOCKER exec "$container" ./worker/entrypoint.sh health 2> /dev/null; do
        waited=$((waited + 1))
        if [ "$waited" -gt "$START_SECONDS" ] || ! $DOCKER exec "$container" true; then
            $DOCKER logs "$container" | tail -30
            return 1
        fi
        sleep 1
    done
    echo "ready after about $waited s"
    get /native/info || return
    get /native/embed '{"texts": ["море"], "return_sparse": true, "return_dense": false}' || return
    get /native/rerank '{"query": "море", "documents": ["о суше", "о море"]}' || return
    $DOCKER logs "$container" 2>&1 | grep -E "WARN|ERROR|models loaded"
    return 0
}

step host host
step card card
step answer answer
step server serve
echo "== $failed steps failed"
exit "$failed"
