"""How a kernel covers a volume: the block runner and its ledger. The only door to Dask."""
