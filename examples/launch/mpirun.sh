#!/usr/bin/env bash
# Four processes on two machines by Open MPI:  examples/launch/mpirun.sh configs/gpt-stdlib.yaml
# Open MPI tells each process its index and their number. On one machine that is all; across machines
# it does not tell the address, so set it: the first host of the list, and any port that is free there.
set -euo pipefail

hosts=${HOSTS:-machine1:2,machine2:2}
export JAX_COORDINATOR_ADDRESS="${hosts%%:*}:9876"

# Each process gets the device of its number on its machine; it needs no MPI library itself.
mpirun --host "$hosts" -n 4 -x JAX_COORDINATOR_ADDRESS \
  jaxpipe train "$1" --pipeline.ranks 4 --run.directory /shared/runs
