#!/usr/bin/env bash
# Starts one node of a cluster: the same lines on AWS, Google Cloud, Slurm and machines of your own.
#
#   deploy/start.sh head            schedules, answers, serves MLflow; does no work
#   deploy/start.sh worker          needs RAY_HEAD_IP
#
# FUSELINE_NODE_IP       this node's address on the private network; else the one that leads to the others
# FUSELINE_MLFLOW_STORE  where the head's MLflow server keeps runs; else a SQLite file in FUSELINE_STATE
# FUSELINE_MLFLOW_STORE_FILE  a file of mode 600 with that address in it, which is how one with a password is given
# FUSELINE_ARTIFACTS     where it keeps files, as in s3://bucket/mlflow; else a folder in FUSELINE_STATE
# FUSELINE_STATE         the head's folder for what must outlive it; else ~/fuseline-state
# FUSELINE_MLFLOW_APP    basic-auth makes the server ask for a name and a password
# FUSELINE_RAY_FLAGS     more for `ray start`, as in "--num-cpus=8 --labels role=cpu"
#
# The token that all nodes share is where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
set -euo pipefail

export RAY_AUTH_MODE=token
# A job may wait a week for a node; by Ray's own setting it fails after a quarter of an hour.
export RAY_JOB_START_TIMEOUT_SECONDS=${RAY_JOB_START_TIMEOUT_SECONDS:-604800}
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
# A core dump of a decoder would hold somebody's face.
ulimit -c 0

kind=${1:-}
head=${RAY_HEAD_IP:-}
own=${FUSELINE_NODE_IP:-}
read -r -a more <<< "${FUSELINE_RAY_FLAGS:-}"
# Ray hands its environment on to every job: the address, which may hold a password, is for the MLflow server alone.
store=${FUSELINE_MLFLOW_STORE:-}
unset FUSELINE_MLFLOW_STORE
if [[ $kind == head && -n ${FUSELINE_MLFLOW_STORE_FILE:-} ]]; then
  if [[ ! -r $FUSELINE_MLFLOW_STORE_FILE ]]; then
    echo "start.sh head: FUSELINE_MLFLOW_STORE_FILE: $FUSELINE_MLFLOW_STORE_FILE cannot be read" >&2
    exit 2
  fi
  if [[ $(stat -L -c %a "$FUSELINE_MLFLOW_STORE_FILE") != *00 ]]; then
    echo "start.sh head: others may read $FUSELINE_MLFLOW_STORE_FILE: chmod 600 it" >&2
  fi
  store=$(< "$FUSELINE_MLFLOW_STORE_FILE")
fi

# The address from which packets leave for another one; connecting a datagram socket sends nothing.
leads_to() {
  python -c 'import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9))
    print(probe.getsockname()[0])' "$1"
}

answers() {
  python -c 'import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5)' "$1" 2> /dev/null
}

serve_mlflow() {
  local state=${FUSELINE_STATE:-$HOME/fuseline-state}
  if ! mkdir -p "$state" || [[ ! -w $state ]]; then
    echo "start.sh head: FUSELINE_STATE: $(id -un) cannot write to $state" >&2
    exit 2
  fi
  local files=${FUSELINE_ARTIFACTS:-$state/artifacts}
  local app=()
  if [[ -n ${FUSELINE_MLFLOW_APP:-} ]]; then app=(--app-name "$FUSELINE_MLFLOW_APP"); fi
  # Once an address: a second `start.sh head`, as of `ray up` again, finds it and leaves it.
  if answers "http://$own:5000/health"; then return; fi
  # By an environment variable, since a password in an argument is there for all to read. A worker that is silent for 5 s would be ended and
  # begun anew, also while it still starts: on a busy machine that goes on for ever.
  MLFLOW_BACKEND_STORE_URI=${store:-sqlite:///$state/mlflow.db} setsid nohup mlflow server "${app[@]}" \
    --host "$own" --port 5000 --allowed-hosts "$own:5000,localhost:5000" \
    --serve-artifacts --artifacts-destination "$files" --workers 2 \
    --uvicorn-opts "--timeout-worker-healthcheck 120" \
    >> "$state/mlflow.log" 2>&1 < /dev/null &
}

case $kind in
  head)
    own=${own:-$(leads_to 10.255.255.255)}
    export MLFLOW_TRACKING_URI=http://$own:5000
    serve_mlflow
    ray start --head --node-ip-address="$own" --port=6379 --object-manager-port=8076 \
      --dashboard-host=127.0.0.1 "${more[@]}"
    ;;
  worker)
    if [[ -z $head ]]; then
      echo "start.sh worker: RAY_HEAD_IP is not set; give it the head's address" >&2
      exit 2
    fi
    export MLFLOW_TRACKING_URI=http://$head:5000
    own=${own:-$(leads_to "$head")}
    ports=(--object-manager-port=8076)
    # Beside the head other ports. Where that of Ray's agent, 52365, is taken, the node starts all the same, without one: the log
    # of no driver there could be had.
    if [[ $own == "$head" || $head == 127.* ]]; then
      ports=(--object-manager-port=8077 --dashboard-agent-listen-port=52366)
    fi
    ray start --address="$head:6379" --node-ip-address="$own" "${ports[@]}" "${more[@]}"
    ;;
  *)
    echo "start.sh: head or worker, not '$kind'" >&2
    exit 2
    ;;
esac
