"""`python -m causal_tune`: the command line."""

import os
import sys

# Python put the working folder first: a `queue.py` or `numpy.py` that lies there would be taken for the real one
if sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH109, PTH120  nothing is imported
    del sys.path[0]

from causal_tune.cli import main

main(prog_name="causal-tune")
