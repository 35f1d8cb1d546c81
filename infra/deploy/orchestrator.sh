#!/usr/bin/env bash
# The orchestrator's container: a Ray node without CPUs, because a Ray driver must stand on a node of its cluster, and the service.
# When either ends, both end, and the container's restart policy begins again.
set -u
trap 'kill $(jobs -p) 2>/dev/null' TERM INT
ray start --address="$WEGEFT_RAY_ADDRESS" --num-cpus=0 --disable-usage-stats --block &
wgctl serve &
wait -n
status=$?
kill $(jobs -p) 2>/dev/null
wait
exit "$status"
