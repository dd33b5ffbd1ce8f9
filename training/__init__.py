"""The training of the shipped model `tiny`: its generated text, its recipe, its evaluation.

Not part of the installed package: run it from the repository, `python -m training.train`.
"""
