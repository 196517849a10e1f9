"""What stands in place of weights is named for what it is, with a fix of its own; damage and wrong numbers are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
import weights_forms as forms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cmapkd.errors import UserError
from cmapkd.models import contents, formats, towers
from cmapkd.models.places import WEIGHTS

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 598641023\n"
TEXTS = {
    "a pointer of git-lfs, not the weights themselves (which have 598641023 bytes)": POINTER,
    "a web page": b"\n\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
    "a web page, not": b"<HTML><BODY>403</BODY></HTML>",
    "XML, not weights": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "JSON, not weights": b'{"error": "Repository not found"}',
    "text, not weights: 'Access to model x is restricted": "Access to model x is restricted … é\n".encode(),
    "text, not weights: 'Entry not found'": b"\xef\xbb\xbfEntry not found",
}


def refused(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        towers.create("tiny-forms-True", forms.CONFIG, str(path), "teacher.pretrained")
    assert caught.value.key == "teacher.pretrained"
    return caught.value


@pytest.mark.parametrize("name", ["file.pt", "file.safetensors", "file.bin", "directory"])
@pytest.mark.parametrize("said", TEXTS)
def test_text_in_place_of_weights_is_called_that(said: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "directory":
        towers.save(forms.model(), "tiny-forms-True", path)
        (path / WEIGHTS).write_bytes(TEXTS[said])
    else:
        path.write_bytes(TEXTS[said])
    assert said in str(refused(path))


def test_a_long_text_is_a_text_although_a_letter_is_cut_at_its_4096th_byte(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<html>" + "é" * 9000)
    assert "is a web page" in str(refused(tmp_path / "page.pt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\0" * 5000, "begins with zeros only"),
        (b"\x1f\x8b" + bytes(range(256)), "is a gzip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG image"),
        (b"PK\x03\x04" + bytes(100), "is cut off: a zip archive of 104 bytes without its end"),
        (bytes(range(128, 256)) * 10, "is not a checkpoint of torch or safetensors"),
    ],
)
def test_other_files_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    assert said in str(refused(tmp_path / "file.pt"))


def test_a_zip_that_is_no_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "repository.pt", "w") as archive:
        archive.writestr("CLIP-main/README.md", "hello")
    assert "not a checkpoint: it holds README.md" in str(refused(tmp_path / "repository.pt"))


def test_incomplete_files_are_called_that(tmp_path: Path) -> None:
    state = forms.model().state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 400):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        assert "is cut off" in str(refused(tmp_path / "cut.safetensors"))
    (tmp_path / "long.safetensors").write_bytes(whole + b"more")
    assert "has 4 bytes more than its header announces" in str(refused(tmp_path / "long.safetensors"))
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-100])
    assert "is cut off: a zip archive" in str(refused(tmp_path / "cut.pt"))
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "legacy.pt").read_bytes()[:-100])
    assert "cannot be read" in str(refused(tmp_path / "cut.pt"))


def test_a_flipped_bit_in_a_checkpoint_of_torch_is_noticed(tmp_path: Path) -> None:
    torch.save(forms.model().state_dict(), tmp_path / "model.pt")
    content = bytearray((tmp_path / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    torch.load(tmp_path / "model.pt", weights_only=True)  # torch itself does not notice
    assert "cannot be read: Bad CRC-32" in str(refused(tmp_path / "model.pt"))


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    source = forms.model()
    save_file(source.state_dict(), tmp_path / "weights.bin")
    torch.testing.assert_close(
        forms.outputs(towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "weights.bin"))), forms.outputs(source)
    )
    torch.save(source.state_dict(), tmp_path / "weights.safetensors")
    torch.testing.assert_close(
        forms.outputs(towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "weights.safetensors"))),
        forms.outputs(source),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: torch.full_like(value, float("nan")), "visual.proj has 512 of 512 values that are not finite"),
        (lambda value: torch.where(value == value[0, 0], torch.inf, value), "visual.proj has 1 of 512 values"),
        (lambda value: (value * 100).to(torch.int8), "visual.proj is of int8"),
        (lambda value: value.to(torch.float8_e4m3fn), "visual.proj is of float8_e4m3fn"),
        (lambda value: value.double() * 1e300, "visual.proj has"),
        (lambda value: value.to(torch.complex64), "visual.proj is of complex64"),
    ],
)
def test_values_that_are_no_weights_name_their_tensor(change, said: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = forms.model().state_dict()
    state["visual.proj"] = change(state["visual.proj"])
    torch.save(state, tmp_path / "model.pt")
    assert said in str(refused(tmp_path / "model.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_their_values(dtype: torch.dtype, tmp_path: Path) -> None:
    source = forms.model()
    state = {name: value.to(dtype) for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    made = towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "model.pt"))
    assert {value.dtype for value in made.state_dict().values()} == {torch.float32}
    assert torch.equal(made.state_dict()["visual.proj"], state["visual.proj"].float())


def test_tensors_that_share_memory_are_read_and_saved(tmp_path: Path) -> None:
    source = forms.model()
    blocks = source.visual.transformer.resblocks
    blocks[1].mlp.c_fc.weight = blocks[0].mlp.c_fc.weight  # tied, as a training may do
    torch.save(source.state_dict(), tmp_path / "tied.pt")
    made = towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "tied.pt"))
    torch.testing.assert_close(forms.outputs(made), forms.outputs(source))
    towers.save(source, "tiny-forms-True", tmp_path / "saved")
    torch.testing.assert_close(forms.outputs(towers.load(tmp_path / "saved")), forms.outputs(source))


def _made(name: str, folder: Path) -> bytes:
    path = folder / name
    if not path.is_file():
        state = {"visual.proj": torch.ones(3), "logit_scale": torch.ones(())}
        if name == "a.safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=name == "zip.pt")
    return path.read_bytes()


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["a.safetensors", "zip.pt", "legacy.pt"]), data=st.data())
def test_damaged_bytes_never_end_in_a_traceback(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(_made(name, tmp_path))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    (tmp_path / "damaged.pt").write_bytes(content if data.draw(st.booleans()) else content[:cut])
    try:
        formats.read_weights(tmp_path / "damaged.pt", "student.init")
    except UserError as error:
        assert error.fix


@given(st.binary(max_size=300))
def test_any_bytes_have_a_form_or_an_error(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.pt"
        path.write_bytes(content)
        try:
            assert contents.form_of(path, "student.init")
        except UserError as error:
            assert error.fix
