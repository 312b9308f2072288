"""Measures how good the system and what people use instead are on a folder of images with true masks.

Our own methods run through the services, so what is measured is what is served. Needs images/ and masks/; the plot and
the comparators need the extra ``evaluation``. Refuses folders whose pairs do not match.
"""
