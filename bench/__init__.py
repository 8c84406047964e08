"""vemray's benchmark: `make bench`. Every workload runs against its reference in the same call; the table shows ratios."""
