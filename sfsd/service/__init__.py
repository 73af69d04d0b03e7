"""The daemon as a service of the system: its log output, notifications and inherited sockets."""
