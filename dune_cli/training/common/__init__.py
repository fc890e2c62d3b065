"""What every training has: run folder, checkpoints, processes, schedule, data set, report."""
