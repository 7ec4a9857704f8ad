"""exllamav2 on a GPU: its dynamic generator, driven by one thread for each model that is loaded.

Only `packages` imports it, and torch; `loader` and `model` use them. What people ask for is prepared
(`engine`, `encoder`, `sampling`), waits (`batch`) and is read (`run`) without.
"""
