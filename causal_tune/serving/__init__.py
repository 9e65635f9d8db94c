"""A detector behind an HTTP address: a gate that checks and decodes, and replicas on Ray Serve that score.

The gate is a FastAPI application in the process of `causal-tune serve`, not Ray Serve's own proxy: limits hold
before anything is kept, and the gate still has the images of a replica that dies, so it asks another.
"""
