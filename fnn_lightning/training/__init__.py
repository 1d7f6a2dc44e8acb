"""How a network is trained: optimisation, metrics, logging, checkpoints, resuming."""
