"""A load tester for chat servers: many WebSockets, every answer checked to the last character.

    python -m cmd.loadtest -url ws://127.0.0.1:8080/ws -connections 1000 -rounds 5 -message hello

It shares no code with the server: it knows only what stands on the wire.
"""
