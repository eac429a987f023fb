"""Whether an image is of the kind that a model was trained on, and what is done about one that is not.

`home` (how images are described and compared), `fit` (scale, polarity and contrast that bring one closer), `suit` (what
a run does with both).
"""
