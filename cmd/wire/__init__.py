"""Builds what each process is made of, from the settings: a module for each kind of process, so that none
loads what only others need. The only place that knows the concrete classes."""
