#!/bin/sh
# What an image of this project runs, by its first argument:
#
#   (none)            the queue worker on RunPod, the HTTP server elsewhere
#   queue             the queue worker
#   serve [options]   the HTTP server on every address of the container; see --help
#   test [payload]    answers test_input.json, or the payload, and exits
#   health            whether the HTTP server answers; for HEALTHCHECK
set -eu
cd "$(dirname "$0")/.."

if [ "$#" -eq 0 ]; then
    # RunPod tells its queue workers where jobs come from.
    if [ -n "${RUNPOD_WEBHOOK_GET_JOB:-}" ]; then set -- queue; else set -- serve; fi
fi
mode="$1"
shift

case "$mode" in
    queue) exec python worker/handler.py ;;
    serve) exec python worker/server.py --host 0.0.0.0 "$@" ;;
    test) exec python worker/handler.py ${1:+--test_input "$1"} ;;
    health)
        [ -z "${RUNPOD_WEBHOOK_GET_JOB:-}" ] || exit 0
        # No proxy: $http_proxy is for what is elsewhere.
        exec python -c "import os, urllib.request as r
url = 'http://127.0.0.1:' + os.environ.get('PORT', '8000') + '/ping'
r.build_opener(r.ProxyHandler({})).open(url, timeout=5)"
        ;;
    *)
        echo "usage: [queue | serve [options] | test [payload] | health]. Given: $mode" >&2
        exit 64
        ;;
esac
