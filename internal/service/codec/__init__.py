"""Dialects: client frames to commands, events to payloads. Codecs keep no state; dicts end here."""
