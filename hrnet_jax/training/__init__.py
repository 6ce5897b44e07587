"""Parts of a training run: the step, logs, metric files, leases, records, stopping."""
