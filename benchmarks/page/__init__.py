"""From measurements to the results page."""
