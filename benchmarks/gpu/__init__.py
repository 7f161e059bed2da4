"""The GPU figures: `python -m benchmarks.gpu`, or `make bench-gpu`."""
