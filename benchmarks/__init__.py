"""What a step costs, as ratios measured in one run.  `make bench`."""
