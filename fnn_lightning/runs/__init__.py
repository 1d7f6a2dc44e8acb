"""Runs on disk and as processes: folders, files, checkpoints, loggers, signals, subprocesses."""
