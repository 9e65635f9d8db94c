"""`python -m causal_tune`: the command line."""

from causal_tune.cli import main

main(prog_name="causal-tune")
