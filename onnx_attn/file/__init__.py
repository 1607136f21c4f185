"""Graph to file and back: bytes, metadata, and what a file says of itself."""
