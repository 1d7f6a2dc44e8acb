"""What a network gets right and wrong: predictions, statistics, plots, reports."""
