"""Passwords, tokens and secrets: what the rules of accounts need of cryptography."""
