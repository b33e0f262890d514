#!/bin/sh
# The image's entry point. The first argument selects:
#
#   (none)            $BGE_MODE; without it, the queue worker on RunPod, otherwise the HTTP server
#   queue             the queue worker
#   serve [options]   the HTTP server on every address of the container; see --help
#   test [payload]    answer test_input.json, or the payload, and exit
#   health            check that the HTTP server answers; for HEALTHCHECK
set -eu
cd "$(dirname "$0")/.."

if [ "$#" -eq 0 ]; then
    # RunPod sets this variable for its queue workers. Its Hub can set variables, but no arguments.
    set -- "${BGE_MODE:-${RUNPOD_WEBHOOK_GET_JOB:+queue}}"
    set -- "${1:-serve}"
fi
mode="$1"
shift

case "$mode" in
    queue) exec python worker/handler.py ;;
    serve) exec python worker/server.py --host 0.0.0.0 "$@" ;;
    test) exec python worker/handler.py ${1:+--test_input "$1"} ;;
    health)
        [ -z "${RUNPOD_WEBHOOK_GET_JOB:-}" ] || exit 0
        # Ignores $http_proxy, which is not for loopback.
        exec python -c "import os, urllib.request as r
url = 'http://127.0.0.1:' + os.environ.get('PORT', '8000') + '/ping'
r.build_opener(r.ProxyHandler({})).open(url, timeout=5)"
        ;;
    *)
        echo "usage: [queue | serve [options] | test [payload] | health]. Given: $mode" >&2
        exit 64
        ;;
esac
