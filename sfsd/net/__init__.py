"""Sockets, connections and dispatch to worker threads."""
