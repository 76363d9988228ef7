"""Compare aiodata with its peers: run `python -m benchmarks` for the scenarios."""
