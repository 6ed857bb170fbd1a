#!/bin/bash
# Translate many slides as one SLURM job of several nodes: a Dask scheduler, a worker for each GPU, and the batch.
#
#   sbatch examples/batch_slurm_dask.sh slides.csv /shared/out her2.safetensors
#
# Compared with the array job, no GPU is left with the long slides while others have nothing to do; but the job begins
# only when all its nodes are free. Submit the same again to resume. Add your site's --partition and --account.

#SBATCH --job-name=wsi2ihc
#SBATCH --nodes=2
# One worker per GPU.
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

slides=${1:?list of slides (.csv), folder, or pattern in quotes}
out=${2:?folder of the outputs, on a file system that all nodes share}
model=${3:?name or file of a generator}
shift 3

# The network between the nodes (see `ip address`). Anyone who reaches the scheduler over it can run programs as you:
# docs/batch.md explains how to exclude others with certificates.
interface=${WSI2IHC_INTERFACE:-ib0}

# module load ...; source .../bin/activate

mkdir -p "$out"
file=$out/scheduler-$SLURM_JOB_ID.json
scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}

# Children read it; a variable, since the folder is each node's own.
export WSI2IHC_CHILD_CACHE=$scratch

# Files such as json.py in the current folder are not executed in place of Python's own.
export PYTHONSAFEPATH=1

dask scheduler --scheduler-file "$file" --interface "$interface" --port 0 --dashboard-address 127.0.0.1:0 &
scheduler=$!

# Slides run in a child of the worker, so the worker's own limit of memory has no meaning. A worker of Dask's takes its
# threads from --nthreads; so does the child.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    dask worker --scheduler-file "$file" --interface "$interface" --nworkers 1 --nthreads "$SLURM_CPUS_PER_TASK" \
    --resources GPU=1 --memory-limit 0 --no-dashboard --dashboard-address 127.0.0.1:0 \
    --local-directory "$scratch" --death-timeout 120 &
workers=$!

finish() {
    kill "$workers" 2>/dev/null || true
    wait "$workers" || true
    kill "$scheduler" 2>/dev/null || true
    wait || true
    rm -f "$file"
}
trap finish EXIT

# Wait for the scheduler's file and the first worker; others are given slides as they come.
timeout 900 python - "$file" <<'PYTHON'
import sys
from distributed import Client
with Client(scheduler_file=sys.argv[1], timeout=120) as client:
    client.wait_for_workers(1, timeout=600)
PYTHON

wsi2ihc batch "$slides" "$out" --model "$model" --scheduler "$file" --keep-going "$@"
