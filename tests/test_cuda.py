"""What trains on a CUDA device: the same numbers as on the CPU, bfloat16, resume, and files that any machine can read.

Skipped where torch finds no CUDA device. ``tests/test_koopman_training.py`` has the autocast test of the Koopman JEPA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import artefact, checkpoint, generators, snapshot
from agents.callbacks import AccountTags
from agents.recipe import TrainingConfig
from agents.training import train
from encoders import encoder as files
from encoders import pretrain as pretraining
from encoders.belief import BeliefConfig
from encoders.jepa_training import JEPAConfig, JEPATraining, prepare
from encoders.pretrain import PretrainConfig, pretrain
from markets import synthetic

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")

SMALL = JEPAConfig(
    channels=("return", "volatility"), hidden=6, inner=8, latent=4, steps=6, sequences=2, length=400,
    scale_jitter=0.3, belief=BeliefConfig(regimes=2),
)  # fmt: skip


class Killed(BaseException):
    """Ends a training as a kill does."""


# ---- policies ---------------------------------------------------------------------------------------------------

PLAYED: dict[str, dict[str, Any]] = {
    "ppo": {"env": "PerpFutures-v0", "arguments": {"bars": "synthetic:crypto?seed=1&bars=3000", "episode_bars": 48}},
    "a2c": {"env": "SpotCrypto-v0", "arguments": {"bars": "synthetic:basket?seed=1&bars=3000", "episode_bars": 48}},
    "maskable_ppo": {
        "env": "ZeroDTE-v0", "arguments": {"bars": "synthetic:spy?seed=1&sessions=9&early_close=only"},
    },
    "recurrent_ppo": {
        "env": "PerpFutures-v0", "arguments": {"bars": "synthetic:crypto?seed=1&bars=3000", "episode_bars": 48},
    },
}  # fmt: skip
ROLLOUT = {"a2c": 8}


def config(out: Path, algo: str, device: str = "cuda") -> TrainingConfig:
    return TrainingConfig(
        algo=algo, steps=1024, seed=3, out=out, lanes=8, quiet=True, evaluations=2, device=device,
        checkpoint_every=256, settings={"n_steps": ROLLOUT.get(algo, 32)}, **PLAYED[algo],
    )  # fmt: skip


def killed(out: Path, algo: str, calls: int) -> None:
    honest, count = AccountTags._on_step, [0]

    def on_step(self: Any) -> bool:
        count[0] += 1
        if count[0] == calls:
            raise Killed
        return honest(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AccountTags, "_on_step", on_step)
        with pytest.raises(Killed):
            train(config(out, algo))
    torch.cuda.manual_seed(99)  # what another process would not have either
    torch.rand(7, device="cuda")


def weights(folder: Path) -> dict[str, Any]:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return {name: value for name, value in found.state.arrays.items() if name.startswith("weights/")}


def apart(one: Path, other: Path) -> float:
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


@pytest.mark.parametrize("algo", sorted(PLAYED))
def test_a_killed_run_on_the_device_is_resumed_to_the_same_weights(algo: str, tmp_path: Path) -> None:
    train(config(tmp_path / "whole", algo))
    killed(tmp_path / "cut", algo, 90)
    train(replace(config(tmp_path / "cut", algo), resume=True))
    difference = apart(tmp_path / "whole", tmp_path / "cut")
    print(f"{algo} on CUDA: largest difference of a weight after a resume {difference:g}")
    assert difference <= 1e-6


def test_a_resume_that_forgets_the_generator_of_the_device_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(tmp_path / "whole", "ppo"))
    killed(tmp_path / "cut", "ppo", 90)
    honest: Callable[..., None] = generators.restore_globals

    def forget(arrays: dict[str, Any], plain: dict[str, Any], device: torch.device) -> None:
        honest({name: value for name, value in arrays.items() if name != "cuda"}, plain, device)

    monkeypatch.setattr(snapshot, "restore_globals", forget)
    train(replace(config(tmp_path / "cut", "ppo"), resume=True))
    assert apart(tmp_path / "whole", tmp_path / "cut") > 1e-4


@pytest.mark.parametrize("algo", sorted(PLAYED))
def test_an_agent_of_the_device_is_one_file_that_speaks_alike_on_both(algo: str, tmp_path: Path) -> None:
    train(config(tmp_path, algo))
    here, there = artefact.load(tmp_path), artefact.load(tmp_path, device="cuda")
    assert here.manifest["device"].startswith("cuda")
    assert next(there.policy.parameters()).device.type == "cuda"
    assert next(here.policy.parameters()).device.type == "cpu"
    width = here.policy.observation_space.shape[0]
    rows = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
    with torch.no_grad():
        given = torch.from_numpy(rows)
        if algo == "recurrent_ppo":
            first, second = (here.predict(rows)[0], there.predict(rows)[0])
        else:
            first = here.policy.get_distribution(given).distribution
            second = there.policy.get_distribution(given.cuda()).distribution
            first, second = (
                (one.logits if hasattr(one, "logits") else one.mean).cpu().numpy() for one in (first, second)
            )
    difference = float(np.abs(first - second).max())
    print(f"{algo}: largest difference between CPU and CUDA {difference:g}")
    assert difference < 1e-4


# ---- encoders ---------------------------------------------------------------------------------------------------


def trained(device: str, amp: bool = False, steps: int = 6) -> tuple[JEPATraining, list[dict[str, float]]]:
    # No jitter: it draws on the device, whose generator is another one.
    plan = replace(SMALL, device=device, amp=amp, steps=steps, scale_jitter=0.0)
    training = JEPATraining(prepare([synthetic.crypto(7, "1h", 3000)], plan), plan)
    return training, [training.step() for _ in range(steps)]


def test_a_training_of_the_encoder_takes_the_same_steps_on_both() -> None:
    _, ours = trained("cpu")
    net, theirs = trained("cuda")
    assert net.device.type == "cuda"
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=2e-3, abs=1e-4)


def test_the_encoder_trains_in_bfloat16_on_the_device() -> None:
    kinds: set[torch.dtype] = set()
    plan = replace(SMALL, device="cuda", amp=True, steps=200, sequences=4, w_jepa=0.0, scale_jitter=0.0)
    training = JEPATraining(prepare([synthetic.crypto(7, "1h", 3000)], plan), plan)
    training.net.trunk.a.register_forward_hook(lambda module, given, out: kinds.add(out.dtype))
    losses = [sum(training.step().values()) for _ in range(200)]
    assert torch.bfloat16 in kinds
    assert np.isfinite(losses).all()
    assert np.mean(losses[-40:]) < np.mean(losses[:40])


def test_a_pretraining_on_the_device_resumes_and_its_encoder_needs_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pretraining._Judge.__init__

    def lenient(self: Any, *args: Any) -> None:
        original(self, *args)
        self.reference = -1e9  # six steps teach nothing

    monkeypatch.setattr(pretraining._Judge, "__init__", lenient)
    series = [synthetic.crypto(7, "1h", 3000)]
    plan = PretrainConfig(jepa=replace(SMALL, device="cuda", amp=True), every=2)
    whole = pretrain(series, plan, tmp_path / "whole")

    def kill(step: int, total: int, figures: dict[str, float]) -> None:
        if total == 6 and step == 5:
            raise Killed

    with pytest.raises(Killed):
        pretrain(series, plan, tmp_path / "cut", told=kill)
    torch.cuda.manual_seed(99)  # the jitter draws on the device
    again = pretrain(series, plan, tmp_path / "cut", resume=True)
    ours, theirs = whole.table(series[0]).values, again.table(series[0]).values
    difference = float(np.abs(ours - theirs).max())
    print(f"pretraining on CUDA: largest difference of a row after a resume {difference:g}")
    assert difference < 1e-3
    loaded = files.load(tmp_path / "whole").table(series[0]).values  # numpy only
    assert loaded.tobytes() == ours.tobytes()
