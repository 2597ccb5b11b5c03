"""What the gate says of good models, and what comes out of it."""

from __future__ import annotations

import io
import warnings
import zipfile

import pytest
import torch
from torch import nn

from helpers.archives import GOOD, changed, checked, entries, load, repacked, saved, sparse, zipped
from helpers.shared_data import shared_file
from pruning_server.archive.limits import ALIGNMENT_BYTES, ZipLimits
from pruning_server.archive.model import repack_model
from pruning_server.archive.refusals import MODEL_REFUSALS
from pruning_server.archive.zip_directory import read_directory
from pruning_server.errors import InvalidArtifactError, Reason

SHARED = ["silero_vad", "policy_go2", "policy_go2_himloco", "policy_g1_loco_lstm", "wtw_adaptation", "tchrs_foo1"]


def layout(archive: bytes):
    """The entries of an archive."""
    return read_directory(io.BytesIO(archive), MODEL_REFUSALS, ZipLimits())


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without sparsity."""
    return tensor.to_dense() if tensor.is_sparse else tensor


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", GOOD)
class TestRepack:
    def test_plain_torch_loads_it_and_gives_equal_outputs(self, name: str, compress: bool) -> None:
        make, example = GOOD[name]
        original, copy = load(make()), load(repacked(make(), compress=compress))
        assert torch.equal(original(example), copy(example))
        assert {k: v.shape for k, v in original.state_dict().items()} == {
            k: v.shape for k, v in copy.state_dict().items()
        }
        assert all(torch.equal(dense(v), dense(copy.state_dict()[k])) for k, v in original.state_dict().items())

    def test_twice_gives_the_same_bytes(self, name: str, compress: bool) -> None:
        once = repacked(GOOD[name][0](), compress=compress)
        assert repacked(once, compress=compress) == once

    def test_uncompressed_repacking_of_a_compressed_copy_keeps_it(self, name: str, compress: bool) -> None:
        once = repacked(GOOD[name][0](), compress=compress)
        assert repacked(once, compress=False) == once

    def test_records_keep_names_order_and_content(self, name: str, compress: bool) -> None:
        archive = GOOD[name][0]()
        before, after = entries(archive), entries(repacked(archive, compress=compress))
        assert list(before) == list(after)
        assert before == after

    def test_payloads_are_aligned_and_dates_fixed(self, name: str, compress: bool) -> None:
        archive = repacked(GOOD[name][0](), compress=compress)
        assert all(entry.payload_offset % ALIGNMENT_BYTES == 0 for entry in layout(archive))
        with zipfile.ZipFile(io.BytesIO(archive)) as source:
            assert source.testzip() is None
            assert {info.date_time for info in source.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert not any(info.flag_bits & 8 for info in source.infolist())

    def test_what_was_written_passes_the_gate(self, name: str, compress: bool) -> None:
        destination = io.BytesIO()
        summary = repack_model(io.BytesIO(GOOD[name][0]()), destination, compress=compress)
        assert checked(destination.getvalue()) == summary
        assert summary.size_bytes == len(destination.getvalue())


def test_only_tensors_that_shrink_are_deflated() -> None:
    plain, packed = layout(repacked(sparse())), layout(repacked(sparse(), compress=True))
    for before, after in zip(plain, packed, strict=True):
        assert after.name == before.name
        if after.method != before.method:
            assert "/data/" in after.name
            assert after.packed_bytes <= 0.9 * after.size_bytes
    assert any(after.method != before.method for before, after in zip(plain, packed, strict=True))
    assert len(repacked(sparse(), compress=True)) < 0.6 * len(repacked(sparse()))


def test_a_record_that_barely_shrinks_stays_as_it_was() -> None:
    torch.manual_seed(3)
    dense = saved(torch.jit.script(nn.Linear(64, 64)))
    methods = {entry.name: entry.method for entry in layout(repacked(dense, compress=True)) if "/data/" in entry.name}
    assert set(methods.values()) == {zipfile.ZIP_STORED}


def test_our_own_compression_never_looks_like_a_bomb() -> None:
    with torch.no_grad():
        net = nn.Sequential(*[nn.Linear(256, 256) for _ in range(4)])
        for weight in net.parameters():
            weight.zero_()
    limits = ZipLimits(max_ratio=20, free_bytes=300_000)
    destination = io.BytesIO()
    archive = saved(torch.jit.script(net))
    summary = repack_model(io.BytesIO(archive), destination, compress=True, limits=limits)
    assert len(destination.getvalue()) < len(archive) / 2
    again = io.BytesIO()
    assert repack_model(destination, again, compress=True, limits=limits) == summary
    assert again.getvalue() == destination.getvalue()


def test_extra_files_survive() -> None:
    archive = repacked(GOOD["scripted"][0](), compress=True)
    wanted = dict.fromkeys(["labels.txt", "config/é.bin", "README"], "")
    torch.jit.load(io.BytesIO(archive), _extra_files=wanted)
    assert {k: v if isinstance(v, str) else v.decode() for k, v in wanted.items()} == {
        "labels.txt": "low\nhigh", "config/é.bin": "ä", "README": "",
    }  # fmt: skip
    assert sorted(checked(archive).extra_files) == ["README", "config/é.bin", "labels.txt"]


def test_the_summary_of_a_scripted_model() -> None:
    archive = GOOD["many-sided"][0]()
    summary = checked(archive)
    content = entries(archive)
    assert summary.methods == ("forward", "scaled")
    assert summary.format_version == 3
    assert summary.root == next(iter(content)).split("/")[0]
    assert summary.tensor_bytes == sum(len(data) for name, data in content.items() if "/data/" in name)
    assert summary.code_bytes == sum(len(data) for name, data in content.items() if name.endswith(".py"))
    assert summary.size_bytes == len(archive)


def test_a_file_name_beyond_ascii_is_a_good_root(tmp_path) -> None:
    path = tmp_path / "modèle v1.2.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    archive = repacked(path.read_bytes())
    assert checked(archive).root.startswith("modèle")
    assert load(archive)(torch.ones(1, 2)).shape == (1, 2)


def test_the_lite_interpreters_bytecode_is_left_out(tmp_path) -> None:
    path = tmp_path / "lite.ptl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2))._save_for_lite_interpreter(str(path))
    assert any(name.endswith("bytecode.pkl") for name in entries(path.read_bytes()))
    archive = repacked(path.read_bytes())
    assert not any(name.endswith("bytecode.pkl") for name in entries(archive))
    assert load(archive)(torch.ones(1, 2)).shape == (1, 2)


def test_an_archive_that_was_zipped_again_by_hand_is_taken() -> None:
    content = entries(GOOD["scripted"][0]())
    root = next(iter(content)).split("/")[0]
    archive = zipped({f"{root}/": b"", f"{root}/code/": b"", **content}, zipfile.ZIP_DEFLATED)
    assert torch.equal(load(repacked(archive))(torch.ones(1, 1, 8, 8)), load(archive)(torch.ones(1, 1, 8, 8)))
    assert list(entries(repacked(archive))) == list(content)


def test_a_newer_format_version_in_its_other_place() -> None:
    archive = GOOD["traced"][0]()
    assert checked(changed(archive, {"version": None, ".data/version": b"10\n"})).format_version == 10
    assert checked(changed(archive, {"byteorder": None})).format_version == 3


@pytest.mark.parametrize("name", SHARED)
def test_other_peoples_models(name: str) -> None:
    archive = shared_file(f"torchscript/{name}.pt").read_bytes()
    copy = repacked(archive, compress=True)
    assert repacked(copy, compress=True) == copy
    before, after = load(archive).state_dict(), load(copy).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before | after)
    assert "forward" in checked(copy).methods


def test_a_model_without_forward() -> None:
    class NoForward(nn.Module):
        @torch.jit.export
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            """Returns its input."""
            return x

    with pytest.raises(InvalidArtifactError, match="predict") as refused:
        checked(saved(torch.jit.script(NoForward())))
    assert refused.value.reason is Reason.MODEL_NO_FORWARD


def test_a_module_without_any_method() -> None:
    with pytest.raises(InvalidArtifactError) as refused:
        checked(saved(torch.jit.script(nn.GRU(2, 2))))
    assert refused.value.reason is Reason.MODEL_NO_FORWARD
