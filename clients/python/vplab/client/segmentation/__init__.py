"""The segmentation service's part of the client."""
