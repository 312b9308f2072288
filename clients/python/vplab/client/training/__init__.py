"""The training service's part of the client."""
