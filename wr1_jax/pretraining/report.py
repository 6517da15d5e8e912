"""What a run found out about speed and quality: one table, printed at its end and kept in report.json."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
from jaxtyping import PyTree

from wr1_jax.training.programs import Program

# Trying out kernels for each of a training step's hundreds of small products took over nine minutes on an H200.
_COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Part:
  """A function to be compiled, and arrays or shapes like those it will be called with."""

  name: str
  function: Callable
  arguments: tuple[PyTree, ...]
  donate: tuple[int, ...] = ()

  def lower(self) -> jax.stages.Lowered:
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.arguments)
    return jax.jit(self.function, donate_argnums=self.donate).lower(*abstract)


class Report:
  """Numbers by name, in the order in which they were found; those of earlier starts are kept."""

  def __init__(self, path: Path):
    self._path = path
    self._values: dict[str, float | str] = json.loads(path.read_text()) if path.exists() else {}

  def __setitem__(self, name: str, value: float | str) -> None:
    self.quiet(name, value)
    print(f"  {name}: {_shown(value)}", flush=True)

  def quiet(self, name: str, value: float | str) -> None:
    """Notes a value without printing it."""
    self._values[name] = value
    draft = self._path.with_suffix(".tmp")
    draft.write_text(json.dumps(self._values, indent=2) + "\n")
    draft.replace(self._path)

  def __getitem__(self, name: str) -> float | str:
    return self._values[name]

  def __contains__(self, name: str) -> bool:
    return name in self._values

  def compile(self, *parts: Part) -> list[Program]:
    """Compiles programs side by side; notes the seconds until each was ready and the memory that it needs."""
    started = time.perf_counter()
    lowered = [part.lower() for part in parts]

    def finish(part: Part, lowered: jax.stages.Lowered) -> Program:
      executable = lowered.compile(compiler_options=_COMPILER_OPTIONS)
      return Program(part.name, executable, time.perf_counter() - started)

    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
      programs = list(pool.map(finish, parts, lowered))
    for program in programs:
      self[f"{program.name}: ready after (s)"] = program.seconds
      self[f"{program.name}: memory (GiB)"] = program.bytes / 2**30
    return programs

  def table(self) -> str:
    """All of it, a line each."""
    width = max(map(len, self._values), default=0)
    return "\n".join(f"{name:{width}}  {_shown(value)}" for name, value in self._values.items())


def _shown(value: float | str) -> str:
  return value if isinstance(value, str) else f"{value:.4g}"
