"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
  """Wrong input: the message is one paragraph that says what was wrong, where, and what would be right.

  Command-line programs print it without a traceback and exit with status 2; see `reported`.
  """


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """Turns a `UserError` inside the block into its message on stderr and exit status 2."""
  try:
    yield
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
