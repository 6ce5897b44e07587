"""What a run does beside its gradient steps: logs, metric files, leases, records, stopping."""
