"""Images in: one reader a format, one set of rules about axes, dtypes, colours and sizes (`view.py`)."""
