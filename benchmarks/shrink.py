"""What shrinking costs and what it gives; run by `make bench-shrink`.

For a ResNet-50 at 224 px and the CIFAR ResNets 20 and 56: from archive to shrunk archive at half of the MACs, in forward
passes of the original at batch 8 and in memory beyond the imports, each in a process of its own; then whole jobs without
recovery, whose reports give the latency of both models in one run: at batch 32, for the CIFAR nets at batch 64 and by
sensitivity too. Times are ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
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
    Scope,
    StaticStrategy,
    Target,
    TargetKind,
)
from zoo.classic_parts import ResNet

HALF = Target(kind=TargetKind.MACS_RATIO, value=0.5)
CHANNELS = StaticStrategy(granularity=Granularity.CHANNEL)
BY_SENSITIVITY = StaticStrategy(granularity=Granularity.CHANNEL, scope=Scope.SENSITIVITY)
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


def job(
    archive: Path, data: dict[str, np.ndarray], threads: int, strategy: StaticStrategy, batch: int, **fields: object
) -> dict:
    """A whole job's report."""
    with tempfile.TemporaryDirectory() as folder:
        spec = make_spec(
            HALF,
            strategy=strategy,
            recovery=Recovery(disabled=True),
            evaluation=Evaluation(latency_batch_size=batch),
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
    macs = report["cost"]["pruned"]["macs"] / report["cost"]["original"]["macs"]
    print(f"{name}")
    print(f"  archive to shrunk archive: {cost['passes']:.1f} forward passes at batch 8 ({cost['seconds']:.1f} s)")
    print(
        f"  memory beyond the imports: {cost['extra_mib'] / cost['archive_mib']:.1f}x the archive ({cost['extra_mib']:.0f} MiB)"
    )
    print(f"  MACs ratio: {cost['macs_ratio']:.3f} planned, {macs:.3f} in the job")
    print(
        f"  proof: {report['verify']['max_relative_error']:.1e} given, {report['verify']['max_relative_error_randomized']:.1e} random"
    )
    print("  seconds:", ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in report["timings"].items()), flush=True)


def show_latency(strategy: StaticStrategy, report: dict) -> None:
    """How much faster the shrunk model is."""
    original, pruned = (report["cost"][which] for which in ("original", "pruned"))
    latency = [one["latency_seconds"] for one in (original, pruned)]
    print(
        f"  {strategy.scope.value} at MACs {pruned['macs'] / original['macs']:.3f}, batch {latency[0]['batch']}:"
        f" {latency[0]['p50'] / latency[1]['p50']:.2f}x faster ({1000 * latency[0]['p50']:.1f} ms,"
        f" {1000 * latency[1]['p50']:.1f} ms; {latency[0]['threads']} threads)",
        flush=True,
    )


def measure(
    name: str,
    net: torch.nn.Module,
    shape: tuple[int, ...],
    data: dict[str, np.ndarray],
    jobs: Sequence[tuple[StaticStrategy, int]] = ((CHANNELS, 32),),
    **fields: object,
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
        for number, (strategy, batch) in enumerate(jobs):
            report = job(archive, data, torch.get_num_threads(), strategy, batch, **fields)
            if not number:
                show(name, cost, report)
            show_latency(strategy, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["resnet20", "resnet50", "resnet56"])
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    every = [(strategy, batch) for strategy in (CHANNELS, BY_SENSITIVITY) for batch in (32, 64)]
    for depth in (depth for depth in (20, 56) if options.only in {None, f"resnet{depth}"}):
        found = SHARED_DATA.is_dir()
        net = trained_resnet(depth) if found else CifarResNet(depth)
        images = np.load(SHARED_DATA / "cifar10_test.npz") if found else None
        data = {"inputs": rng.integers(0, 256, (400, 32, 32, 3), dtype=np.uint8), "targets": np.arange(400) % 10}
        if images is not None:
            data = {"inputs": images["images"][:400], "targets": images["labels"][:400]}
        preprocessing = Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC)
        name = f"ResNet-{depth}, CIFAR-10, 32 px"
        measure(name, net, (3, 32, 32), data, every, preprocessing=preprocessing)
    if options.only in {None, "resnet50"}:
        data = {"inputs": rng.normal(size=(48, 3, 224, 224)).astype(np.float32), "targets": np.arange(48) % 10}
        measure("ResNet-50, 224 px", ResNet((3, 4, 6, 3), 1000), (3, 224, 224), data)
    sys.exit(0)


if __name__ == "__main__":
    main()
