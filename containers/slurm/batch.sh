#!/usr/bin/env bash
# An archive on one node of a Slurm cluster: sbatch containers/slurm/batch.sh ARCHIVE PIPELINE IMAGES
# A job that the time limit or a failed node ends is begun again and does what is missing.
#SBATCH --job-name=cinestream
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=3G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
archive=${1:?folder or list of raw files} pipeline=${2:?name of a pipeline} images=${3:?folder for the images}

# srun passes Slurm's signals to the batch itself, so that its workers end with it.
exec srun --cpu-bind=none \
    cinestream batch "$archive" -p "$pipeline" -o "$images" --processes "$SLURM_CPUS_PER_TASK" --threads 1
