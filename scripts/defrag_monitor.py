"""Watch the stream of a deployed defragmentation encoder: is it still like the training range, or is a refit due?

Without --checkpoint a demonstration: a generated stream of three regimes is fitted; its continuation raises no flag,
the same with drift does (exit status 0, and 1 where the seed shows otherwise). With --checkpoint, or with --encoder and
--bars, the exit status is 1 where a refit is due and 0 where not; 2 is bad input.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from markets.errors import ConfigError, DataError, MissingExtraError
from markets.storage import replace_file
from scripts import folders

if TYPE_CHECKING:
    from encoders.defrag_monitor import Calibration, DriftMonitor, Reading

_log = logging.getLogger(__name__)

PICTURE = "monitor.png"
TRAINING, STREAM, CALM = 200, 150, 50  # blocks of the demonstration; its drifts begin after CALM blocks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="what ChronosDefragEngine.save wrote")
    parser.add_argument(
        "--features", type=Path, metavar="TABLE",
        help="of --checkpoint: .parquet, .npz or CSV, a row a tick, a column for each of its feature names",
    )  # fmt: skip
    parser.add_argument("--encoder", metavar="DIR", help="an encoder of bars: of pretrain, or a shipped name")
    parser.add_argument("--bars", metavar="SPEC", help="of --encoder: bars of its training range and those after it")
    parser.add_argument(
        "--until", metavar="DATE", help="of --encoder: where watching begins (default: its training's end)"
    )
    parser.add_argument(
        "--training", type=Path, metavar="TABLE",
        help="ticks that it was fitted on: needed where those were more than 1,024 blocks",
    )  # fmt: skip
    parser.add_argument(
        "--first-tick", type=int, metavar="N",
        help="number of the table's first row (default: the one after the training range)",
    )  # fmt: skip
    parser.add_argument(
        "--false-alarm", type=float, default=0.05, metavar="P",
        help="probability of a flag within --horizon blocks of a stream that does not drift (default 0.05)",
    )  # fmt: skip
    parser.add_argument("--horizon", type=int, default=200, metavar="BLOCKS", help="of --false-alarm (default 200)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="state, readings and picture go there; a later call with the longer table goes on from that state",
    )  # fmt: skip
    parser.add_argument(
        "--study", action="store_true",
        help="measure false alarms and delays on 1,000 generated streams: the table of docs/encoders.md (minutes)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the demonstration (default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON line a block, and one with the summary")


def run(options: argparse.Namespace) -> int:
    """Show or watch."""
    if options.study:
        return measure(options)
    if options.encoder is not None or options.bars is not None:
        return watch_market(options)
    if options.until is not None:
        raise ConfigError("--until goes with --encoder DIR and --bars SPEC")
    if options.checkpoint is None:
        for flag in ("features", "training", "first_tick"):
            if getattr(options, flag) is not None:
                raise ConfigError(f"--{flag.replace('_', '-')} goes with --checkpoint FILE")
        return demonstrate(options)
    if options.features is None:
        raise ConfigError("--checkpoint needs --features TABLE, the ticks to watch")
    return watch_table(options)


def measure(options: argparse.Namespace) -> int:
    """Print what the monitor does on streams whose drift is known."""
    from encoders.drift_study import study
    from encoders.pretrain import torch_threads

    for flag in ("checkpoint", "features", "training", "first_tick", "encoder", "bars", "until", "out"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')} does not go with --study, which has streams of its own")
    torch_threads(1)
    rows = study(told=(lambda text: None) if options.json else print_line)
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    return 0


def print_line(text: str) -> None:
    """Write a line as soon as it is known."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def watch_market(options: argparse.Namespace) -> int:
    """Watch bars through an encoder of bars; a longer history gives the same readings, so that no state is kept."""
    from encoders.defrag_bars_monitor import watch_bars
    from encoders.defrag_market import DefragEncoder
    from encoders.defrag_monitor_folder import READINGS
    from encoders.encoder import load
    from markets.sources import load as load_bars

    if options.encoder is None or options.bars is None:
        raise ConfigError("--encoder DIR and --bars SPEC go together")
    for flag in ("checkpoint", "features", "training", "first_tick"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')} does not go with --encoder, whose ticks are bars")
    encoder = load(options.encoder)
    if not isinstance(encoder, DefragEncoder):
        raise ConfigError(f"encoder={options.encoder!r} is of kind {encoder.kind!r}: defrag-monitor watches 'defrag'")
    bars = load_bars(options.bars)
    found = watch_bars(encoder, bars, options.until, options.false_alarm, options.horizon)
    calibration = found.monitor.calibration
    _tell_calibration(calibration, options.json)
    for reading, close in zip(found.readings, found.closes, strict=True):
        if not options.json:
            sys.stdout.write(f"{str(close)[:16]}  ")
        _tell(reading, calibration, options.json)
    _summarise({"bars": found.readings}, {"bars": found.monitor}, options.json, left=found.left)
    if options.out is not None:
        folders.make(options.out)
        lines = "".join(json.dumps(asdict(reading)) + "\n" for reading in found.readings)
        replace_file(options.out / READINGS, lines.encode())
        _draw(options.out, {bars.symbols[0]: found.readings}, calibration, f"{bars.symbols[0]} under {options.encoder}")
    return int(found.monitor.refit)


def watch_table(options: argparse.Namespace) -> int:
    """Watch a table; what was read before a bad block is told and kept."""
    from encoders.defrag import ChronosDefragEngine
    from encoders.defrag_monitor import DriftMonitor, calibration_of, watch
    from encoders.defrag_monitor_folder import keep, resumed, table

    engine = ChronosDefragEngine.from_checkpoint(options.checkpoint)
    names = engine.fitted.feature_names
    training = None if options.training is None else table(options.training, names)
    monitor = DriftMonitor(calibration_of(engine, training, options.false_alarm, options.horizon))
    first = engine.fitted.train_end + 1 if options.first_tick is None else options.first_tick
    ticks, upcoming = table(options.features, names), first
    before: list[Reading] = []
    if options.out is not None:
        folders.make(options.out)
        upcoming, before = resumed(options.out, monitor, engine, first)
    skipped = upcoming - first
    if not 0 <= skipped <= len(ticks):
        raise DataError(
            f"{options.features} has ticks {first} to {first + len(ticks) - 1}, the monitor goes on at tick {upcoming}"
        )
    _tell_calibration(monitor.calibration, options.json)
    found: list[Reading] = []
    try:
        for reading in watch(engine, monitor, ticks[skipped:], upcoming):
            found.append(reading)
            _tell(reading, monitor.calibration, options.json)
    finally:
        upcoming += len(found) * engine.config.block_len
        if options.out is not None:
            keep(options.out, monitor, engine, upcoming, [*before, *found])
    _summarise({"stream": found}, {"stream": monitor}, options.json, left=first + len(ticks) - upcoming)
    if options.out is not None:
        title = f"{options.features.name} under {options.checkpoint.name}"
        _draw(options.out, {"stream": [*before, *found]}, monitor.calibration, title)
    return int(monitor.refit)


def demonstrate(options: argparse.Namespace) -> int:
    """Fit a generated stream and watch three continuations of it; 0 where only those with drift are flagged."""
    from encoders.defrag import ChronosDefragEngine
    from encoders.defrag_config import DefragConfig
    from encoders.defrag_monitor import DriftMonitor, calibration_of, watch
    from encoders.drift_streams import DRIFTS, FEATURES, drifted, regime_stream
    from encoders.pretrain import torch_threads

    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} must be at least 0")
    if options.out is not None:
        folders.make(options.out)
    torch_threads(1)
    config = DefragConfig(
        input_dim=len(FEATURES), latent_dim=24, hidden=8, epochs=10, predictor_epochs=3, entropy_weight=1.0,
        seed=options.seed,
    )  # fmt: skip
    length = config.block_len
    whole, _ = regime_stream(TRAINING + STREAM, length, seed=options.seed)
    training, after = whole[: TRAINING * length], whole[TRAINING * length :]
    engine = ChronosDefragEngine(config)
    engine.fit(training, feature_names=FEATURES)
    calibration = calibration_of(engine, None, options.false_alarm, options.horizon)
    calm, rest = after[: CALM * length], after[CALM * length :]
    streams = {
        "stationary": after,
        **{f"drift at block {CALM}, {kind}": np.concatenate([calm, drifted(rest, kind)]) for kind in DRIFTS},
    }
    monitors = {name: DriftMonitor(calibration) for name in streams}
    readings = {name: list(watch(engine, monitors[name], ticks)) for name, ticks in streams.items()}
    _tell_calibration(calibration, options.json)
    if options.json:
        for name, found in readings.items():
            for reading in found:
                sys.stdout.write(json.dumps({"stream": name, **asdict(reading)}) + "\n")
    _summarise(readings, monitors, options.json)
    if options.out is not None:
        _draw(options.out, readings, calibration, f"demonstration, seed {options.seed}")
    flagged = [monitors[name].flagged for name in streams]  # the stationary one first
    late = [number is not None and number >= CALM for number in flagged[1:]]
    return 0 if flagged[0] is None and all(late) else 1


def _tell_calibration(calibration: Calibration, as_json: bool) -> None:
    if as_json:
        return
    sys.stdout.write(
        f"calibrated on {calibration.blocks:,} training blocks, worth {calibration.effective:.0f} independent ones; "
        f"mean score of held-out parts {calibration.mean:.2f}; threshold {calibration.threshold:.1f}: a flag within "
        f"{calibration.horizon:,} blocks without drift has probability {calibration.false_alarm:g}\n"
    )


def _tell(reading: Reading, calibration: Calibration, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(reading)) + "\n")
        return
    flag = "  refit" if reading.refit else ""
    sys.stdout.write(
        f"block {reading.block:>5}  confidence {reading.confidence:.4f}  statistic {reading.statistic:7.2f} of "
        f"{calibration.threshold:.1f}{flag}\n"
    )


def _summarise(
    readings: dict[str, list[Reading]], monitors: dict[str, DriftMonitor], as_json: bool, left: int = 0
) -> None:
    for name, monitor in monitors.items():
        row: dict[str, Any] = {
            "stream": name, "blocks": monitor.blocks, "read_now": len(readings[name]), "ticks_left": left,
            "flagged": monitor.flagged, "refit": monitor.refit, "calibration": asdict(monitor.calibration),
        }  # fmt: skip
        if as_json:
            sys.stdout.write(json.dumps({"summary": row}) + "\n")
            continue
        verdict = "no refit is due" if monitor.flagged is None else f"refit due, flagged at block {monitor.flagged}"
        rest = f", {left} ticks left for the next block" if left else ""
        sys.stdout.write(f"{name}: {monitor.blocks:,} blocks, {len(readings[name]):,} read now: {verdict}{rest}\n")


def _draw(folder: Path, readings: dict[str, list[Reading]], calibration: Calibration, title: str) -> None:
    from encoders.defrag_monitor_picture import draw

    try:
        _log.info("picture: %s", draw(readings, calibration.threshold, folder / PICTURE, title))
    except MissingExtraError as error:
        _log.warning("no picture: %s", error)
