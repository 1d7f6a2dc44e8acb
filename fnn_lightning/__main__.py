"""Runs the command line: `python -m fnn_lightning`."""

from fnn_lightning.commands.main import main

if __name__ == "__main__":  # a process started by "spawn" imports this file too
    main()
