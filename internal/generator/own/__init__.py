"""Models elsewhere that users bring along: each asks the upstream that they have set for themselves.

Asked as the operator's are (`internal.generator.openai`), but trusted in nothing: neither where they are, nor
what they send.
"""
