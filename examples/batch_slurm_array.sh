#!/bin/bash
# Translate many slides as a SLURM array job: no scheduler of its own, and each task knows its slides by itself.
#
#   sbatch examples/batch_slurm_array.sh slides.csv /shared/out her2.safetensors
#
# Submit the same again to resume after a failure or at the end of the time: slides that are done stay as they are. Some
# tasks alone (sbatch --array=3,5 …) are fine as well. Add your site's --partition and --account.

#SBATCH --job-name=wsi2ihc
# As many tasks as `shards` below, from 0 on; %4: no more than four at once.
#SBATCH --array=0-7%4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
# After preemption SLURM starts the task again, and it resumes.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

set -euo pipefail

slides=${1:?list of slides (.csv), folder, or pattern in quotes}
out=${2:?folder of the outputs, on a file system that all nodes share}
model=${3:?name or file of a generator}
shift 3

# Not SLURM_ARRAY_TASK_COUNT, which is another number when only some tasks are submitted.
shards=8

# module load ...; source .../bin/activate

# A slide is read in small pieces, which a network file system answers slowly. One large copy to the node's own disk is
# faster, if that has room for two slides.
cache=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}

# Each task has a table of its own; `wsi2ihc batch --status OUT` summarizes all. Exit code 3: some slides failed.
exec wsi2ihc batch "$slides" "$out" --model "$model" --shard "$SLURM_ARRAY_TASK_ID/$shards" --cache "$cache" \
    --keep-going "$@"
