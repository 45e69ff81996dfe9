"""What is learned: networks and their checkpoints. Knows no Dask, no Zarr, no Prefect."""
