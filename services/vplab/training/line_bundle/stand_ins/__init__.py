"""Modules that take the place of those of the same name in a bundle's ``vplab/vision``."""
