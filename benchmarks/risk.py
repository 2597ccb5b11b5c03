"""How often a certificate is wrong: 200 caller's sets, each pruned by a job with a risk condition at d = 0.1.

Run by `make bench-risk`. The population is scikit-learn's digits, shifted by up to a pixel and with noise, so that every draw
is a sample nobody saw before; the model is a small MLP. Each job gets a fresh set, and delivers a model that is certified to
lose at most `MAX_LOSS` with a probability of 90 %, or nothing. What the delivered model really loses is measured on 40,000
further draws. Wrong certificates may be at most 30 of 200: the binomial 99 % point of d.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from helpers.runs import Ran, make_spec, make_workspace, run_here
from pruning_server.jobs.events import RunSucceeded
from pruning_server.spec.request import ConditionalStrategy, FineTune, PruningSpec, RiskCondition

RUNS, MOST_WRONG = 200, 30
SAMPLES, TRUTH_SAMPLES = 2_000, 40_000
MAX_LOSS, ERROR_PROBABILITY = 0.03, 0.1
NOISE = 3.0


def main() -> int:
    """Prints the counts; 1 if certificates are wrong more often than promised."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    started = time.perf_counter()
    model = torch.jit.script(_trained())
    inputs, targets = draw(TRUTH_SAMPLES, seed=10**6)
    original = _right(model, inputs, targets)
    print(
        f"MLP on noisy digits: {original.mean():.4f} right; {RUNS} sets of {SAMPLES}, a = {MAX_LOSS}, d = {ERROR_PROBABILITY}"
    )
    true_losses, bounds, sparsities = [], [], []
    for seed in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            ran = _run(Path(folder) / "run", model, seed)
            if not isinstance(ran.last, RunSucceeded):
                continue
            details = ran.report["strategy"]["details"]
            true_losses.append(float((original - _right(ran.pruned, inputs, targets)).mean()))
        bounds.append(details["bound"])
        sparsities.append(details["candidates"][details["chosen"]]["target"]["value"])
    wrong = sum(loss > MAX_LOSS for loss in true_losses)
    print(f"certified {len(true_losses)}, declined {RUNS - len(true_losses)}, wrong {wrong} (at most {MOST_WRONG})")
    if true_losses:
        print(f"true loss: mean {statistics.fmean(true_losses):.4f}, largest {max(true_losses):.4f}; ", end="")
        print(f"certified bound: mean {statistics.fmean(bounds):.4f}")
        below = sum(loss > bound for loss, bound in zip(true_losses, bounds, strict=True))
        print(f"true loss above the reported bound: {below}")
    print("sparsity:", ", ".join(f"{value:g} x {count}" for value, count in sorted(Counter(sparsities).items())))
    print(f"{time.perf_counter() - started:.0f} s")
    return 0 if wrong <= MOST_WRONG and true_losses else 1


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh samples of the population: inputs [count, 64] float32 and classes [count]."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    chosen = rng.integers(len(digits.images), size=count)
    shifts = rng.integers(-1, 2, size=(count, 2))
    images = np.stack(
        [np.roll(image, shift, axis=(0, 1)) for image, shift in zip(digits.images[chosen], shifts, strict=True)]
    )
    noisy = (images + rng.normal(scale=NOISE, size=images.shape)) / 16.0
    return noisy.reshape(count, 64).astype(np.float32), digits.target[chosen].astype(np.int64)


def _trained() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for epoch in range(30):
        inputs, targets = draw(4_000, seed=2 * 10**6 + epoch)
        for rows in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(torch.from_numpy(inputs)[rows]), torch.from_numpy(targets)[rows])
            loss.backward()
            optimizer.step()
    return net.eval()


def _right(model: torch.jit.ScriptModule, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        classes = model.eval()(torch.from_numpy(inputs)).argmax(dim=1).numpy()
    return (classes == targets).astype(np.float64)


def _run(folder: Path, model: torch.jit.ScriptModule, seed: int) -> Ran:
    inputs, targets = draw(SAMPLES, seed)
    return run_here(make_workspace(folder, model, {"inputs": inputs, "targets": targets}, _spec(seed)))


def _spec(seed: int) -> PruningSpec:
    risk = RiskCondition(max_loss=MAX_LOSS, error_probability=ERROR_PROBABILITY)
    # The search for a learning rate would take most of the time, and has nothing to do with the certificate.
    tune = FineTune(epochs=1, learning_rate=1e-3)
    return make_spec(strategy=ConditionalStrategy(risk=risk), target=None, fine_tune=tune, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
