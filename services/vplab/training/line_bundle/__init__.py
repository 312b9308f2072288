"""What a line bundle is made of: its program, and stand-ins for the modules of ``vplab.vision`` that need more than
numpy and OpenCV. All other modules that the program uses are copied into the bundle as they are.
"""
