"""The service: HTTP in, patches out, and everything in between that keeps what was acknowledged."""
