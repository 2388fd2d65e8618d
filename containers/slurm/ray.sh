#!/usr/bin/env bash
# An archive on several nodes of a Slurm cluster: sbatch containers/slurm/ray.sh ARCHIVE PIPELINE IMAGES
# Ray (pip install "cinestream[cluster]") runs for this job alone; all nodes see the files under the same paths.
#SBATCH --job-name=cinestream-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=3G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
archive=${1:?folder or list of raw files} pipeline=${2:?name of a pipeline} images=${3:?folder for the images}

export RAY_USAGE_STATS_ENABLED=0
# Whoever reaches Ray's ports can run code: a token for this job, which all nodes read from the same home.
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two jobs on one node need two ports.
port=$((20000 + SLURM_JOB_ID % 10000))

exec srun --cpu-bind=none \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    cinestream batch "$archive" -p "$pipeline" -o "$images" --ray auto
