"""Models elsewhere: any server that speaks OpenAI's Chat Completions, over HTTP.

It computes nothing and waits for sockets, so it lives on the event loop.

Source: https://platform.openai.com/docs/api-reference/chat
"""
