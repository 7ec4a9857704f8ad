"""The bodies of the REST API, both ways: these models validate, and describe themselves in /openapi.json."""
