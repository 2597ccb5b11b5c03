"""The product in a minute: a real trained model through a real server, and back pruned, fine-tuned and judged.

Run by `make demo`. Trains a small convolutional net on scikit-learn's digits, saves it as TorchScript, starts a server on
a temporary data folder, submits a job with the `prune` command, and leaves everything in `demo/`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

OUT = Path("demo")
SEED = 0
SPARSITY = 0.8
# About 250 held-out samples decide; with so few, no loss below about 2 points could be told from chance.
MARGIN = 0.03


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers with dropout: [N, 1, 8, 8] in, [N, 10] logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.classifier(self.features(images))


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int = 30) -> DigitsNet:
    """Trains a net on images [N, 1, 8, 8] in [0, 1] and labels [N]."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # more would only wait for each other on a net of this size
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def prepare() -> tuple[Path, Path, Path]:
    """Writes the model and the two datasets, and returns their paths: model, training set, validation set."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]  # [1797, 1, 8, 8], values 0..16
    labels = digits.target.astype(np.int64)
    fit_x, held_x, fit_y, held_y = train_test_split(images, labels, train_size=800, stratify=labels, random_state=SEED)
    model, training, validation = OUT / "digits.pt", OUT / "train.npz", OUT / "validation.npz"
    np.savez(training, inputs=fit_x, targets=fit_y)
    np.savez(validation, inputs=held_x, targets=held_y)
    net = train(torch.from_numpy(fit_x).float() / 16, torch.from_numpy(fit_y))
    torch.jit.script(net).save(str(model))
    return model, training, validation


def sandbox_flags() -> list[str]:
    """What the server needs to start here: nothing where the kernel can contain the workers."""
    check = [sys.executable, "-P", "-s", "-m", "pruning_server.sandbox", "check"]
    found = json.loads(subprocess.run(check, capture_output=True, text=True, check=False, timeout=120).stdout)
    if not found["lacking"]:
        return []
    print(
        f"warning: the model runs without a sandbox here, on loopback only ({'; '.join(found['lacking'])})", flush=True
    )
    return ["--insecure-no-sandbox"]


@contextmanager
def running_server(data_dir: Path, log: Path) -> Iterator[str]:
    """Starts a server on free ports and yields its address; stops it at the end."""
    command = [sys.executable, "-m", "pruning_server", "--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*command, "--data-dir", str(data_dir), *sandbox_flags()], stdout=subprocess.PIPE, stderr=stderr
        ) as server,
    ):
        try:
            ready = server.stdout.readline() if server.stdout else b""
            if not ready:
                raise SystemExit(f"the server did not start; see {log}")
            yield json.loads(ready)["address"]
        finally:
            server.terminate()
            server.wait(timeout=30)


def main() -> int:
    """Runs the demo and returns the exit code of `prune submit`."""
    OUT.mkdir(exist_ok=True)
    print("Training a small net on 800 of scikit-learn's digits ...", flush=True)
    model, training, validation = prepare()
    with tempfile.TemporaryDirectory() as data_dir, running_server(Path(data_dir), OUT / "server.log") as address:
        print(f"Server on {address}, its log in {OUT / 'server.log'}", flush=True)
        arguments = [
            "submit", str(model), "--validation", str(validation), "--train", str(training),
            "--strategy", "static", "--sparsity", str(SPARSITY), "--scale", str(1 / 16), "--margin", str(MARGIN),
            "-o", str(OUT / "digits.pruned.pt"), "--report", str(OUT / "report.json"),
            "--html", str(OUT / "report.html"), "--server", address,
        ]  # fmt: skip
        print(f"$ prune {shlex.join(arguments)}", flush=True)
        return subprocess.run([sys.executable, "-m", "pruning_client", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
