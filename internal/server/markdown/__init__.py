"""Markdown is rendered in a process of its own: who waits for it, what it made, and how it is kept alive."""
