"""A report with every part that a report can have, of a made-up job."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from helpers.fake_server import example_report
from pruning_server.worker.thumbnails import encode_png

LEVELS = (0.0, 0.1, 0.2, 0.4)


def paired(original: float, pruned: float, half_width: float = 0.01) -> dict[str, Any]:
    """One number of both models."""
    delta = pruned - original
    return {
        "original": original, "pruned": pruned, "delta": delta, "interval": [delta - half_width, delta + half_width],
        "interval_method": "bootstrap bca",
    }  # fmt: skip


def rich_report() -> dict[str, Any]:
    """Class 4 broke, confidences are off, occlusion hurts, and the recovery overfits."""
    report = example_report()
    report["schema_version"] = "1.1"
    report["accuracy"] |= {
        "confidence_level": 0.95, "interval_method": "tango", "right_to_wrong": 2, "wrong_to_right": 1, "units": 75,
        "others": [paired(0.95, 0.94) | {"name": "macro_f1"},
                   paired(0.2, 0.3) | {"name": "perplexity", "larger_is_better": False}],
        "classes": _classes(), "classes_note": "2 classes with fewer than 3 samples are pooled.",
        "calibration": _calibration(), "churn": _churn(),
    }  # fmt: skip
    report["generalization"] |= {
        "gap_change": 0.01, "gap_change_interval": [-0.01, 0.03], "recovery_overfit_interval": [0.01, 0.05],
        "overfit_warning": "The recovery won 0.0300 more on fit than on report.", "needed_samples": 900,
        "non_inferiority": {"margin": 0.03, "p_value": 0.004, "alpha": 0.025, "method": "tango", "is_shown": True},
        "curves": [{"epoch": epoch, "fit_loss": 1 / epoch, "select_loss": 0.5 + 0.01 * epoch, "select_metric": 0.9}
                   for epoch in range(1, 8)],
    }  # fmt: skip
    report["robustness"] = _robustness()
    report["verify"] = {
        "max_relative_error": 1e-7, "max_relative_error_randomized": 1e-15, "batch_sizes": [1, 3], "dtype": "float32",
    }  # fmt: skip
    report["strategy"] |= _strategy()
    return report


def _classes() -> list[dict[str, Any]]:
    return [
        paired(0.96, 0.7 if label == 4 else 0.96 - 0.005 * (9 - label), 0.05)
        | {"label": label, "samples": 8, "predictions": 8, "p_value": 0.5, "p_corrected": 0.001 if label == 4 else 1.0,
           "is_significant": label == 4}
        for label in (4, *(one for one in range(10) if one != 4))
    ]  # fmt: skip


def _calibration() -> dict[str, Any]:
    bins = {
        name: [{"low": x, "high": x + 0.1, "predictions": 15, "confidence": x + 0.05, "accuracy": x + 0.05 - off}
               for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
        for name, off in (("original", 0.0), ("pruned", 0.08))
    }  # fmt: skip
    return {
        "predictions": 75, "bins": 5, "ece": paired(0.01, 0.08), "nll": paired(0.1, 0.2), "brier": paired(0.1, 0.15),
        "reliability": bins, "scores": "logits",
    }  # fmt: skip


def _churn() -> dict[str, Any]:
    image = np.random.default_rng(0).integers(0, 256, size=(8, 8, 1), dtype=np.uint8)
    sample = {"target": 4, "original": 4, "pruned": 7, "change": "right_to_wrong", "loss_change": 2.5}
    picture = base64.b64encode(encode_png(image)).decode()
    return {
        "right_to_wrong": [5, 9], "wrong_to_right": [1], "right_to_wrong_share": 2 / 75,
        "wrong_to_right_share": 1 / 75, "agreement": 0.95,
        "samples": [sample | {"row": 5, "thumbnail": picture}, sample | {"row": 9, "thumbnail": None}],
    }  # fmt: skip


def _robustness() -> dict[str, Any]:
    def levels(slope: float) -> list[dict[str, Any]]:
        return [{"level": x} | paired(0.95 - x, 0.95 - slope * x, 0.005) for x in LEVELS]

    return {
        "occlusion": paired(0.7, 0.6) | {"kind": "area", "unit": "fraction", "positions": 4, "levels": levels(1.4),
                                         "auc_original": 0.7, "auc_pruned": 0.6},
        "curves": [{"kind": "noise", "unit": "standard deviations", "levels": levels(1.2)},
                   {"kind": "blur", "unit": "pixels", "levels": levels(1.1)}],
        "prune_potential": {"ratios": [0.3, 0.5], "margin": 0.03, "clean": 0.5, "shifted": {"noise": None}},
        "notes": ["Token drop is for sequences."],
    }  # fmt: skip


def _strategy() -> dict[str, Any]:
    rungs = [("nothing", 0.2, 0.2, 0.01), ("reconstruction", 0.2, 0.8, 1.2), ("fine_tuning", 0.8, 0.95, 30.0)]
    return {
        "gate": {"applied": False, "reason": "the model is no classifier"},
        "recovery": {
            "disabled": False, "kept": "fine_tuning",
            "rungs": [{"name": name, "kept": name == "fine_tuning", "metric_before": before, "metric": after,
                       "gain": after - before, "seconds": seconds} for name, before, after, seconds in rungs],
        },
        "details": {"steps": [{"step": step, "action": "prune", "sparsity": step / 100, "select_metric": 0.9}
                              for step in (10, 40, 80)]},
    }  # fmt: skip
