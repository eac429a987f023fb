"""Looking at images and results: one page in the browser, from a server on this machine, over the files as they are."""
