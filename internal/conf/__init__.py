"""Settings as typed models with defaults, read from YAML and the environment."""
