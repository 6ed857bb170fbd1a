#!/bin/bash
# Train on two nodes with four GPUs each, under SLURM; a job that is preempted or runs out of time resumes by itself.
#
#   sbatch examples/train_slurm.sh /shared/BCI.tar /shared/runs/bci-variance examples/train_bci.toml
#
# The archive holds one folder with the data set. Add your site's --partition and --account, and load its modules or
# activate the environment with wsi2ihc[train] where it says so below.

#SBATCH --job-name=wsi2ihc-train
#SBATCH --nodes=2
# One process per GPU. It has to be --ntasks-per-node (not --ntasks), and every process has to see all GPUs of its node
# (so no --gpus-per-task): Lightning Fabric reads SLURM's variables, and takes the GPU with its process's local number.
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
# Tell this script three minutes before the time is up.
#SBATCH --signal=B:USR1@180
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

archive=${1:?archive of the data set (.tar)}
run=${2:?folder of the run, on a file system that all nodes share}
config=${3:?configuration (.toml)}

# module load ...; source .../bin/activate

# Many small files are slow to read from a shared file system: unpack them on each node's own disk. A requeued job may
# get other nodes, so this is done at every start.
scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/wsi2ihc-$SLURM_JOB_ID
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -c \
    'mkdir -p "$2" && tar -xf "$1" -C "$2" --strip-components=1' unpack "$archive" "$scratch"

# A run that has a checkpoint resumes from it, with its own configuration. Otherwise it starts.
if [[ -f $run/checkpoints/last.pt ]]; then
    how=(--resume)
else
    how=(--config "$config")
fi

# Time is up: back into the queue, which ends this job. Where preemption requeues by itself, nothing is left to do.
requeue() {
    signalled=1
    echo "$(date): time is up, going back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || echo "could not requeue: submit again to resume from the checkpoint"
}
trap requeue USR1

# The batch is shared out among the 8 processes, and the variance term compares all of it. The study's batch of 8 would
# leave one image per GPU; 32 keeps them busy, but is another experiment: fewer steps per epoch, more images compared.
# The batch size has to be the same at every start. A preempted job loses the steps since the last checkpoint.
# srun takes the cores per process from the job by itself only before SLURM 22.05; without them, all get one.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 wsi2ihc train "$scratch" --out "$run" "${how[@]}" \
    --batch-size 32 --checkpoint-every 200 --workers 6 &
training=$!

# A signal ends `wait` before the training ends, so wait again.
signalled=1
while [[ -n $signalled ]]; do
    signalled='' code=0
    wait "$training" || code=$?
done

srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 rm -rf "$scratch" || true
exit "$code"
