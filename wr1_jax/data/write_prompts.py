"""Writes the prompts that models are trained on, from the grammar in `assets/grammar`.

    python -m wr1_jax.data.write_prompts --out=DIR [--seed=0] [--static=3000] [--dynamic=500]

DIR/static.txt gets prompts of still worlds in five themes, DIR/dynamic.txt prompts in which things move; UTF-8, one a
line. The files in `assets/prompts` are what this writes by default. `--config.data.static_prompts=DIR/static.txt` and
`--config.data.dynamic_prompts=DIR/dynamic.txt` train on others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from wr1_jax.data.grammar import writer
from wr1_jax.data.grammar.writer import Prompt
from wr1_jax.errors import UserError, reported

SEED, STATIC, DYNAMIC = 0, 3000, 500  # of the shipped files


def write(out: Path, seed: int = SEED, static: int = STATIC, dynamic: int = DYNAMIC) -> None:
  """Writes `out`/static.txt and `out`/dynamic.txt, replacing what is there.

  Raises:
    UserError: a count is below 1 or beyond what the grammar can write, or `out` cannot be written.
  """
  for name, count in (("static", static), ("dynamic", dynamic)):
    if count < 1:
      raise UserError(f"--{name}={count} must be at least 1: prompt files cannot be empty.")
  prompts = writer.generate(seed, static, dynamic)
  try:
    out.mkdir(parents=True, exist_ok=True)
    for name, written in zip(("static", "dynamic"), prompts):
      (out / f"{name}.txt").write_bytes(file_content(written))
  except OSError as error:
    raise UserError(f"--out={out} cannot be written: {error}.") from error


def file_content(prompts: Sequence[Prompt]) -> bytes:
  """The bytes of a prompt file; line ends are the same on every system."""
  return "".join(f"{prompt.text}\n" for prompt in prompts).encode()


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m wr1_jax.data.write_prompts", description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=Path, required=True, help="folder to write static.txt and dynamic.txt to")
  parser.add_argument("--seed", type=int, default=SEED, help="another seed, other prompts")
  parser.add_argument("--static", type=int, default=STATIC, help="prompts of still worlds")
  parser.add_argument("--dynamic", type=int, default=DYNAMIC, help="prompts in which things move")
  arguments = parser.parse_args()
  with reported():
    write(arguments.out, arguments.seed, arguments.static, arguments.dynamic)


if __name__ == "__main__":
  main()
