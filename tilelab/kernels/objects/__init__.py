"""Objects of a label image that arrives block by block: pieces with sums that add, joined over the front."""
