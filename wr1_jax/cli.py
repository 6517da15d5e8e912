"""The command line that all programs share: `--config=FILE`, `--config.KEY=VALUE` and the program's own flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from absl import flags
from ml_collections import config_flags

from wr1_jax import config as config_lib
from wr1_jax.errors import UserError

T = TypeVar("T")


def parse(
  argv: Sequence[str], define_flags: Callable[[flags.FlagValues], None], schema: type[T] = config_lib.Config
) -> tuple[T, flags.FlagValues]:
  """Parses `argv` (program name first); `define_flags` adds the program's own flags, `schema` lists the options.

  Raises:
    UserError: no or a wrong `--config`, an unknown flag or option, or a value of the wrong type.
  """
  values = flags.FlagValues()
  config_flag = config_flags.DEFINE_config_file(
    "config", help_string="config file, a Python file", flag_values=values, sys_argv=list(argv)
  )
  define_flags(values)
  path = _check_config_arguments(argv, schema)
  try:
    rest = values(list(argv))
  except flags.Error as error:
    *traceback, reason = str(error).strip().splitlines()
    what = f"--config={path}" if traceback else "the command line"  # a config file's own error comes with all its lines
    raise UserError(f"{what} could not be read: {reason}") from error
  except Exception as error:  # the config file is a program, and may fail in any way
    raise UserError(
      f"--config={path}, or an option set over it, could not be read: {type(error).__name__}: {error}"
    ) from error
  if len(rest) > 1:
    raise UserError(f"unexpected argument '{rest[1]}'; every argument is written as --name=value.")
  return config_lib.resolve(config_flag.value, schema), values


def _check_config_arguments(argv: Sequence[str], schema: type) -> str:
  """Wrong paths and keys, said more plainly than the flag library does. Returns the path of the config file."""
  path = None
  for i, argument in enumerate(argv):
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-"):
      continue
    if name == "config":
      path = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
    elif name.startswith("config.") and name.removeprefix("config.") not in config_lib.option_names(schema):
      raise config_lib.unknown_option(name.removeprefix("config."), schema)
  if path is None:
    raise UserError("--config=FILE is missing, for example --config=configs/tiny.py.")
  if not Path(path.partition(":")[0]).is_file():  # FILE.py:ARGUMENT hands get_config() an argument
    raise UserError(f"--config={path}: there is no such file (looked in {Path.cwd()}).")
  return path
