"""The embedding service's part of the client."""
