"""What a node tells of itself: series for Prometheus, a line for every request, an audit.

Nothing in here is asked by the engine; it asks the engine, when somebody wants to know.
"""
