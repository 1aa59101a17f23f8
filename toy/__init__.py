"""The mini model's world: what it is asked and answers, in which voices, with which face; and its making from scratch.

`python -m toy` is the front door (see __main__.py).
"""
