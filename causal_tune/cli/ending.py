"""What follows finished work, step by step: a step that fails costs neither the work nor the other steps."""

from collections.abc import Callable
from typing import TypeVar

from causal_tune.errors import CausalTuneError, Interrupted, WorkFailed

__all__ = ["Ending"]

T = TypeVar("T")


class Ending:
    """Collects what went wrong after the work was done, to be told in the last lines with exit code 1.

    >>> ending = Ending()
    >>> ending.step("There is no report", "causal-tune report real", lambda: 1 / 0)
    >>> ending.problems
    ['There is no report: ZeroDivisionError: division by zero. Repeat this step with `causal-tune report real`.']
    """

    def __init__(self) -> None:
        self.problems: list[str] = []

    def step(self, failed: str, again: str, action: Callable[[], T]) -> T | None:
        """What `action` returns; None where it raises, which becomes a problem that begins with `failed`.

        `again` is the command that repeats the step; it is also where a mistake of this package shows its traceback.
        """
        try:
            return action()
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the finished work has to be shown
            self.failed(failed, again, error)
        return None

    def failed(self, what: str, again: str, error: Exception) -> None:
        """`what` was not done because of `error`; `again` is the command that repeats it."""
        reason = str(error) if isinstance(error, CausalTuneError) else f"{type(error).__name__}: {error}"
        self.add(f"{what}: {' '.join(reason.split()).rstrip('.')}. Repeat this step with `{again}`.")

    def add(self, problem: str | None) -> None:
        """A problem that was told as a sentence; None is none."""
        if problem:
            self.problems.append(problem)

    def close(self) -> None:
        """`WorkFailed` with every problem, where there are any."""
        if self.problems:
            raise WorkFailed("\n".join(self.problems))
