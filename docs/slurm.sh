#!/bin/bash
# Trains on a SLURM cluster, through time limits and pre-emption:
#
#     sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 docs/slurm.sh --config mnist
#
# A minute before the time limit SLURM sends USR1 to every rank. The run finishes its step, saves and
# queues the job again, which then resumes in the same folder, runs/JOB_ID.

#SBATCH --job-name fnn_lightning
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 4
#SBATCH --time 01:00:00
#SBATCH --signal USR1@60
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --output fnn_lightning-%j.out

srun --kill-on-bad-exit=1 python -m fnn_lightning fit "$@" \
    --run_folder "runs/$SLURM_JOB_ID" \
    --trainer.num_nodes "$SLURM_NNODES" \
    --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.strategy ddp
