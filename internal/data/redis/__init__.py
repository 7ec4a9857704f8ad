"""The queue and the history on Redis: many servers, many workers."""
