"""A study: trials suggested, trained on Ray, and kept in the ledger exactly once.

`space` and `spec` say what is studied, `suggestion` what is tried next, `search` hands that to Ray
Tune, `worker` runs one trial, `run` runs them all.
"""
