"""What commands say of the flags that let files have other files read, or code run."""

from __future__ import annotations

OUTSIDE_HELP = "read what it names outside of its own folder\nexternal files of HDF5, levels of a Zarr"
TRUST_HELP = (
    "import the code that it names as its network, run it\n"
    "the module of package.module:Class in a recipe or checkpoint; it runs as you"
)
