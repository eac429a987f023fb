"""Many images in one run: one engine, several images under way, a result, a picture and a row each."""
