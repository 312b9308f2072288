"""The recipe of the nano models: data, interactive training, projection of the features, export and measurement.

``python -m vplab.training.foundation --help`` lists the steps; README.md says what each gave.
"""
