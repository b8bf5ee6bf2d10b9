"""TensorBoard event files, written so that a training never ends because its log cannot be written.

Stable-Baselines3's writer hands records to a thread, which dies on a full disk or a deleted folder and takes the
training with it. This one writes each dump in one piece, in the calling thread. What the disk refuses is said once and
left out; a file that was deleted meanwhile is begun anew. A resumed run goes on in the same folder: its first record
tells TensorBoard to forget what the killed run had written beyond the checkpoint.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import get_latest_run_id
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_log = logging.getLogger(__name__)


class EventFile(KVWriter):
    """Appends scalars to an event file in ``folder``.

    Args:
        purge_step: records of earlier files at this step or later no longer count; None keeps all.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._path: Path | None = None
        self._count = 0
        self._failing = False

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one record with every number of a dump."""
        values = [
            Summary.Value(tag=key, simple_value=float(value))
            for key, value in sorted(key_values.items())
            if "tensorboard" not in key_excluded[key] and isinstance(value, int | float | np.number)
        ]
        try:
            self._append([Event(wall_time=time.time(), step=step, summary=Summary(value=values))])
        except OSError as error:
            if not self._failing:
                _log.warning("TensorBoard records cannot be written, training goes on: %s", error)
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Nothing is held open."""

    def _append(self, events: list[Event]) -> None:
        if self._path is None or not self._path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{self._count}"
            self._path, self._count = self._folder / name, self._count + 1
            head = [Event(wall_time=time.time(), file_version="brain.Event:2")]
            if self._purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                head.append(Event(wall_time=time.time(), step=self._purge_step, session_log=start))
            events = [*head, *events]
        buffer = io.BytesIO()
        records = RecordWriter(buffer)
        for event in events:
            records.write(event.SerializeToString())
        _append_whole(self._path, buffer.getvalue())


def tensorboard_logger(root: Path, name: str, steps: int | None = None) -> Logger:
    """Return a logger that writes to ``root/NAME_1``, ``NAME_2`` and so on, a new one for each run.

    Args:
        steps: the step that a resumed run goes on from, in the folder of the latest run; None begins a new run.
    """
    latest = get_latest_run_id(str(root), name)
    folder = root / f"{name}_{latest + 1 if steps is None else max(latest, 1)}"
    return Logger(str(folder), [EventFile(folder, None if steps is None else steps + 1)])


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of ``data`` or nothing: half a record would hide every later one from readers."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(f"{path}: only {written} of {len(data)} bytes could be written")
        except BaseException:
            file.truncate(before)
            raise
