"""From measurements to the results page; nothing here measures.

page.py      the page; goals.py, peers.py and scaleout.py are parts of it, markdown.py its pieces.
plots.py     the plots; plot_scaleout.py is one of them, style.py how they look.
headline.py  the README's table.
"""
