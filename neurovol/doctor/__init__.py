"""Looks for what would end a night's run before it begins: packages, server, store, queue, workers."""
