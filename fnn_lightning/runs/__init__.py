"""Runs on disk and as processes: folders, checkpoint files, signals, subprocesses."""
