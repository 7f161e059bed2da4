"""One script or package per question; `results/` holds what each printed."""
