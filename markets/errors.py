"""Typed errors of the whole suite: what was wrong, where, and the nearest valid choice.

Every error a user can cause is a :class:`RegimeGymError`, which is a ``ValueError``; code that catches the
standard type keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import ModuleType


class RegimeGymError(ValueError):
    """Base of every error that bad input, configuration or a bad file can cause."""


class ConfigError(RegimeGymError):
    """A setting has a value that cannot work; the message names the field and the value."""


class UnknownNameError(ConfigError):
    """A name is not in a table (id, source, column, option, algorithm, split); the message lists what exists."""


class DataError(RegimeGymError):
    """Market data violates the schema; the message names the column and the first offending row."""


class ActionError(RegimeGymError):
    """An action is not a finite number of the right shape; nothing was changed."""


class InSampleError(RegimeGymError):
    """An evaluation would begin inside the range on which something was fitted."""


class NotFittedError(RegimeGymError, RuntimeError):
    """Something that has to be fitted or loaded first was asked for an answer."""


class ArtefactError(RegimeGymError):
    """A saved file is incomplete, altered or does not fit; the message names the member."""


class MissingExtraError(RegimeGymError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


def unknown(kind: str, name: object, choices: Iterable[object]) -> UnknownNameError:
    """Build the error for ``name`` missing in ``choices``, with the nearest valid one first."""
    valid = [str(choice) for choice in choices]
    lower = {choice.lower(): choice for choice in reversed(valid)}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(valid) or 'none'}")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module`` or say which extra of the package brings it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module!r} is needed here and not installed: pip install 'regimegym[{extra}]'"
        ) from error
