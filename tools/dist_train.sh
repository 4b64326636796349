#!/usr/bin/env bash
# bash dist_train.sh CONFIG PROCESSES [arguments of train.py]
# Without a GPU the processes talk over gloo on the CPU.
if [ $# -lt 2 ]; then
    echo "usage: bash dist_train.sh CONFIG PROCESSES [arguments of train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
PORT=${PORT:-29500}
MASTER_ADDR=${MASTER_ADDR:-"127.0.0.1"}

${PYTHON:-python} -m torch.distributed.run \
    --nnodes="$NNODES" \
    --node_rank="$NODE_RANK" \
    --master_addr="$MASTER_ADDR" \
    --nproc_per_node="$GPUS" \
    --master_port="$PORT" \
    "$(dirname "$0")/train.py" \
    "$CONFIG" \
    --launcher pytorch "${@:3}"
