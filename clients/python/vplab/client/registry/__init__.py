"""The registry's part of the client."""
