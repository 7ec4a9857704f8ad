"""What Sluice counts and how Prometheus reads it."""
