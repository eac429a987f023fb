"""What commands say of the flags that let files have other files read, or code run."""

from __future__ import annotations

OUTSIDE_HELP = "read what data name outside of their own folder: external files of HDF5, levels of a Zarr"
TRUST_HELP = "import the module that a recipe or checkpoint names as its network (package.module:Class): it runs as you"
