"""The service edge beside a gRPC server that does nothing else: `python -m benchmarks.edge`."""
