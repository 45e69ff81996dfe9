"""What is stored: sources that are read, OME-Zarr that is written. The only door to zarr and tifffile."""
