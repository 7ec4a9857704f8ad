"""Engines: implementations of the generator port in `biz`."""
