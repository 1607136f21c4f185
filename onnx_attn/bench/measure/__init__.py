"""Workers that take turns, each timing one candidate in a process of its own."""
