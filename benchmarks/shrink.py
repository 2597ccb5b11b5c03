"""What shrinking costs and what it gives; run by `make bench-shrink`.

For a ResNet-50 at 224 px and a CIFAR ResNet-56: from archive to shrunk archive at half of the MACs, in forward passes of
the original at batch 8 and in memory beyond the imports, each in a process of its own; then a whole job without recovery,
whose report gives the latency at batch 32 of both models in one run. Times are ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from helpers.resnet import MEAN, STD, CifarResNet, trained_resnet
from helpers.runs import make_spec, make_workspace, run_process
from helpers.shared_data import SHARED_DATA
from pruning_server.graph.modules import find_weights, get_tensor
from pruning_server.graph.structure import analyse, shrink
from pruning_server.jobs.workspace import REPORT_FILE
from pruning_server.pruning.strategies.static_structure import plan_structure
from pruning_server.pruning.values import StructuralInput
from pruning_server.spec.request import (
    Evaluation,
    Granularity,
    Layout,
    Preprocessing,
    Recovery,
    StaticStrategy,
    Target,
    TargetKind,
)
from zoo.classic_parts import ResNet

HALF = Target(kind=TargetKind.MACS_RATIO, value=0.5)
CHANNELS = StaticStrategy(granularity=Granularity.CHANNEL)
PASSES = 3


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shrink_archive(archive: Path, shape: tuple[int, ...], results: multiprocessing.Queue) -> None:
    """Everything but process start and compression: load, analyse, plan, cut, save."""
    torch.set_num_threads(torch.get_num_threads())
    before = resident_mib()
    start = time.perf_counter()
    module = torch.jit.load(str(archive)).eval()
    structure = analyse(module, {"forward": [(torch.rand(2, *shape),), (torch.rand(3, *shape),)]}, batch_size=2)
    scored = frozenset(weight.name for weight in find_weights(module).weights if len(weight.shape) > 1)
    inputs = StructuralInput(structure.groups, lambda name: get_tensor(module, name), scored, structure.cost)
    plan = plan_structure(inputs, CHANNELS, HALF, 0)
    shrink(module, structure, plan.removal)
    module.save(str(archive.with_suffix(".shrunk.pt")))
    seconds = time.perf_counter() - start
    extra = peak_mib() - before
    ratio = structure.cost(plan.removal).macs / structure.cost({}).macs
    original, images = torch.jit.load(str(archive)).eval(), torch.rand(8, *shape)
    with torch.no_grad():
        for _ in range(3):  # the first runs compile
            original(images)
        start = time.perf_counter()
        for _ in range(PASSES):
            original(images)
    passes = seconds / ((time.perf_counter() - start) / PASSES)
    size = archive.stat().st_size / 2**20
    results.put({"seconds": seconds, "passes": passes, "extra_mib": extra, "archive_mib": size, "macs_ratio": ratio})


def job(archive: Path, data: dict[str, np.ndarray], threads: int, **fields: object) -> dict:
    """A whole job's report."""
    with tempfile.TemporaryDirectory() as folder:
        spec = make_spec(
            HALF,
            strategy=CHANNELS,
            recovery=Recovery(disabled=True),
            evaluation=Evaluation(latency_batch_size=32),
            **fields,
        )
        root = make_workspace(Path(folder) / "run", archive, data, spec, threads=threads)
        start = time.perf_counter()
        code, messages, errors = run_process("run", root, timeout_seconds=1800)
        if code:
            raise SystemExit(f"{messages[-1:]} {errors}")
        report = json.loads((root / REPORT_FILE).read_bytes())
        middle = time.perf_counter()
        code, messages, errors = run_process("check", root, timeout_seconds=1800)
        if code:
            raise SystemExit(f"{messages[-1:]} {errors}")
        report["timings"]["whole process"] = middle - start
        report["timings"]["second process"] = time.perf_counter() - middle
        return report


def show(name: str, cost: dict, report: dict) -> None:
    latency = {which: report["cost"][which]["latency_seconds"]["p50"] for which in ("original", "pruned")}
    macs = report["cost"]["pruned"]["macs"] / report["cost"]["original"]["macs"]
    print(f"{name}")
    print(f"  archive to shrunk archive: {cost['passes']:.1f} forward passes at batch 8 ({cost['seconds']:.1f} s)")
    print(
        f"  memory beyond the imports: {cost['extra_mib'] / cost['archive_mib']:.1f}x the archive ({cost['extra_mib']:.0f} MiB)"
    )
    print(f"  MACs ratio: {cost['macs_ratio']:.3f} planned, {macs:.3f} in the job")
    print(f"  latency at batch 32: {latency['original'] / latency['pruned']:.2f}x faster")
    print(
        f"  proof: {report['verify']['max_relative_error']:.1e} given, {report['verify']['max_relative_error_randomized']:.1e} random"
    )
    print("  seconds:", ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in report["timings"].items()), flush=True)


def measure(
    name: str, net: torch.nn.Module, shape: tuple[int, ...], data: dict[str, np.ndarray], **fields: object
) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "model.pt"
        torch.jit.script(net.eval()).save(str(archive))
        results = context.Queue()
        process = context.Process(target=shrink_archive, args=(archive, shape, results))
        process.start()
        cost = results.get(timeout=1200)
        process.join()
        show(name, cost, job(archive, data, torch.get_num_threads(), **fields))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["resnet50", "resnet56"])
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if options.only != "resnet50":
        found = SHARED_DATA.is_dir()
        net = trained_resnet(56) if found else CifarResNet(56)
        images = np.load(SHARED_DATA / "cifar10_test.npz") if found else None
        data = {"inputs": rng.integers(0, 256, (400, 32, 32, 3), dtype=np.uint8), "targets": np.arange(400) % 10}
        if images is not None:
            data = {"inputs": images["images"][:400], "targets": images["labels"][:400]}
        preprocessing = Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC)
        measure("ResNet-56, CIFAR-10, 32 px", net, (3, 32, 32), data, preprocessing=preprocessing)
    if options.only != "resnet56":
        data = {"inputs": rng.normal(size=(48, 3, 224, 224)).astype(np.float32), "targets": np.arange(48) % 10}
        measure("ResNet-50, 224 px", ResNet((3, 4, 6, 3), 1000), (3, 224, 224), data)
    sys.exit(0)


if __name__ == "__main__":
    main()
