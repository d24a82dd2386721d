"Every coding, depth, table and lie of DICOM files, on phantom pixels."
import logging
import pickle
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

pytest.importorskip("gdcm", reason="python-gdcm (the extra `dicom`) writes and reads JPEG lossless")
pytest.importorskip("jpeg_ls", reason="pyjpegls writes JPEG-LS")
import fakes_dicom as fakes
from vasomim.core import ImageError
from vasomim.core import InputError
from vasomim.data.dicom import decode_frame
from vasomim.data.dicom import read_header
from vasomim.data.dicom import treatment
from vasomim.data.dicom_header import visible_area
from vasomim.data.identity import locate
from vasomim.data.packing import pack
from vasomim.data.sources.catalog import open_source
from vasomim.data.sources.dicom import dicom_source


@pytest.fixture(scope="module", autouse=True)
def salt(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VASOMIM_SALT_FILE", str(tmp_path_factory.mktemp("config") / "salt")); yield


@pytest.fixture(scope="module")
def good(tmp_path_factory): return fakes.good_files(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory): return fakes.bad_files(tmp_path_factory.mktemp("bad"))


def frame(file, i=1, **options): return decode_frame(file, i, **options)[0].numpy()
def unit(bits, i=1): return fakes.gray(bits)[i] / np.float32(2**bits - 1)


def test_every_good_file_gives_frames_in_the_unit_range(good):
    for name, file in good.items():
        header = read_header(file)
        assert len(header.frames) == {"single": 1, "cut": 2}.get(name, 3), name
        x = torch.stack([decode_frame(file, i) for i in range(len(header.frames))])
        assert x.dtype == torch.float32 and x.shape[1:] == ((1, 63, 63) if name == "big_8_odd" else (1, 64, 64)) and 0 <= x.min() < x.max() <= 1, name


@pytest.mark.parametrize("name, bits", [("mono2", 8), ("ten", 10), ("twelve", 12), ("sixteen", 16), ("garbage", 10), ("time", 8), ("big_8", 8), ("ima", 8), ("no_extension", 8), ("no_preamble", 8), ("width_0", 8), ("cut", 8),
                                        ("Implicit_VR_Little_Endian", 12), ("Explicit_VR_Big_Endian", 12), ("Deflated_Explicit_VR_Little_Endian", 12), *[(f"lossless_{s.split('.')[-1]}", 12) for s in fakes.LOSSLESS]])
def test_stored_values_come_back_exactly(good, name, bits):
    assert np.allclose(frame(good[name]), unit(bits), atol=1e-6)


def test_depth_polarity_and_tables(good):
    assert np.allclose(frame(good["mono1"]), 1 - unit(8), atol=1e-6) and np.allclose(frame(good["big_8_odd"]), unit(8)[:63, :63], atol=1e-6)
    for s in fakes.LOSSY: assert np.abs(frame(good[f"lossy_{s.split('.')[-1]}"]) - unit(8)).mean() < 0.02, s
    stored = fakes.gray(8)[1].astype(float)
    assert np.allclose(frame(good["presets"], window=1), np.clip((stored - 59.5) / 39 + 0.5, 0, 1), atol=1e-5) and treatment(read_header(good["presets"]), 1, 1) == "window 1"
    assert np.allclose(frame(good["presets"], window=None), unit(8), atol=1e-6) and np.allclose(frame(good["presets"], window=7), frame(good["presets"]))
    assert np.allclose(frame(good["sigmoid"]), 1 / (1 + np.exp(-4 * (stored - 128) / 100)), atol=1e-5)
    for vr in ("US", "SS"):
        x, deep = frame(good[f"voi_{vr}"]), fakes.gray(12)[1]
        assert np.allclose(x, np.clip((deep - 736.0) / 2064, 0, 1), atol=1e-4) and treatment(read_header(good[f"voi_{vr}"])) == "VOI LUT 0"
    assert np.allclose(frame(good["modality"]), 1 - unit(8), atol=1e-6) and np.allclose(frame(good["negative_slope"]), 1 - unit(8), atol=1e-6)
    assert read_header(good["width_0"]).dropped == ("WindowWidth",)
    weights = np.array([0.299, 0.587, 0.114]); colour = np.stack([stored, stored // 2, stored // 3], -1)
    assert np.allclose(frame(good["capture"]), colour @ weights / 255, atol=1e-5)


def test_number_of_frames_follows_the_pixels(good):
    for name, said in {"frames_absent": "", "frames_zero": "", "frames_empty": "", "frames_large": "too large", "frames_small": "too small", "cut": "cut off"}.items():
        repairs = " ".join(read_header(good[name]).repairs)
        assert said in repairs and bool(repairs) == bool(said), name


def test_times_and_angles(good):
    times = {name: read_header(good[name]).times for name in ("time", "vector", "vector_short", "rate", "mono2")}
    assert times["time"] == pytest.approx((0, 66.7, 133.4)) and times["vector"] == (0, 30, 70) and times["rate"] == (0, 40, 80) and times["vector_short"] == times["mono2"] == ()
    moving, enhanced = read_header(good["moving"]), read_header(good["enhanced"])
    assert moving.primary == (20, 22, 25) and moving.secondary == (-10, -7, -4)
    assert enhanced.primary == (10, 11, 12) and enhanced.secondary == (-5, -5, -5) and (enhanced.spacing, enhanced.spacing_at) == (pytest.approx(0.15), "isocentre") and len(enhanced.apertures) == 1
    stored = fakes.gray(8).astype(float)
    assert np.allclose(frame(good["enhanced"], 2), np.clip((stored[2] - 101.5) / 99 + 0.5, 0, 1), atol=1e-5)      # each frame has its own window


def test_odd_fields_are_dropped_one_by_one(good):
    header = read_header(good["odd_fields"])
    assert header.times == pytest.approx((0, 66.7, 133.4)) and header.primary == (None,) * 3 and header.spacing is None
    assert set(header.dropped) == {"PositionerPrimaryAngle", "WindowWidth", "ImagerPixelSpacing"} and np.allclose(frame(good["odd_fields"]), unit(8), atol=1e-6)


def test_visible_area(good):
    y, x = np.mgrid[1:65, 1:65]
    parts = dict(rectangular=(x <= 60) & (y >= 5), circular=(y - 30)**2 + (x - 40)**2 <= 400)
    for name, mask in parts.items(): assert np.array_equal(visible_area(read_header(good[name]))[0].numpy(), mask), name
    polygon, every = (visible_area(read_header(good[n]))[0].numpy() for n in ("polygonal", "all_shapes"))
    assert polygon[0].all() and polygon[63, 31] and polygon[63].sum() <= 3 and polygon.mean() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(every, parts["rectangular"] & parts["circular"] & polygon)
    assert np.array_equal(visible_area(read_header(good["collimator"]))[0].numpy(), (y >= 11) & (y <= 54)) and visible_area(read_header(good["mono2"])).all()
    assert visible_area(read_header(good["circular"]), 32, 128).shape == (1, 32, 128)


def test_bad_files_are_named_and_the_others_packed(good, bad, tmp_path):
    folder = tmp_path / "both"; folder.mkdir()
    for k in range(10): fakes.write(folder / f"run{k}.dcm", SeriesInstanceUID=f"1.2.{k}")
    for name, (file, _) in bad.items(): (folder / file.name).write_bytes(file.read_bytes())
    source = open_source(folder, progress=False)
    reasons = {locate(p.path, folder).name: p.reason for p in source.problems if "NumberOfFrames" not in p.reason}
    decodes = {r.path for r in source}
    for name, (file, why) in bad.items():
        if file.name in reasons: assert re.search(why, reasons[file.name]), (name, reasons[file.name])
        else: assert name in ("broken_stream", "lying"), name                        # only the pixels tell
    packed = pack(source, tmp_path / "packed", 48, progress=False)
    lost = [b["reason"] for b in packed.info["bad"]]
    assert len(packed) == 30 and sum("JPEG lossless, but they are JPEG baseline" in r for r in lost) == 3 and "icon" not in " ".join(lost) and len(decodes) == 12
    assert {p for p in packed.provenance.patient} == {source[0].patient}


def test_a_folder_as_a_source(good):
    folder = good["mono2"].parent
    source = dicom_source(folder, progress=False)
    assert source.name == "dicom" and len(source) == 3 * len(good) - 2 - 1 and len({r.id for r in source}) == len(source) and {r.patient for r in source} == {source[0].patient}
    text = " ".join(source.notices)
    assert "1 of" in text and "burned into" in text and "secondary captures" in text and "in colour" in text and "ImagerPixelSpacing (1 files)" in text
    record = next(r for r in source if r.path and locate(r.path, folder).name == "circular.dcm")
    assert record.label("visible").shape == (1, 64, 64) and pickle.loads(pickle.dumps(record)).load().shape == (1, 64, 64)
    with ThreadPoolExecutor(8) as pool: together = list(pool.map(lambda r: r.load(), source))
    assert all(torch.equal(x, r.load()) for x, r in zip(together, source))
    assert dicom_source(folder, progress=False).fingerprint == source.fingerprint != dicom_source(folder, window=None, progress=False).fingerprint


def test_twelve_bit_jpeg_and_other_samples_of_pydicom():
    "The library's own samples: read, or refused by a name."
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for file in sorted(folder.glob("*.dcm")):
        try: assert decode_frame(file).isfinite().all()
        except ImageError as error: reason = error.reason
        else: continue
        assert any(t in reason for t in ("no pixel data", "pip install", "BitsAllocated", "Photometric", "cannot be decoded", "begins like", "no whole frame", "not a DICOM", "Rows", "transfer syntax", "they are")), (file.name, reason)
        if file.name == "JPGExtended.dcm": assert "JPEG extended with 12 bits" in reason and "pip install pylibjpeg pylibjpeg-libjpeg" in reason


def test_a_missing_decoder_is_named_with_its_cure(good, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(ImageError, match="compressed as JPEG lossless, and no decoder for it is installed: pip install python-gdcm"): decode_frame(good["lossless_70"])


def test_a_folder_waits_for_its_decoder(good, tmp_path, monkeypatch):
    "Left out one by one, most of an export would be missing from a set that looks finished and is used again."
    from pydicom.pixels.decoders.base import Decoder
    for name in ("lossless_70", "mono2"): shutil.copy(good[name], tmp_path)
    assert len(dicom_source(tmp_path, progress=False)) >= 2
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(InputError, match="1 of 2 DICOM files: each is compressed as JPEG lossless, and no decoder for it is installed: pip install python-gdcm. Install it"): dicom_source(tmp_path, progress=False)


def test_nothing_is_warned_or_logged(good, bad, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, "pydicom"):
        warnings.simplefilter("error")
        for file in [*good.values(), *(f for f, _ in bad.values())]:
            try: decode_frame(file)
            except ImageError: pass
    assert not [r for r in caplog.records if r.name.startswith("pydicom")]
    for file in (good["mono2"].parent / "gone.dcm", good["mono2"].parent):
        with pytest.raises(InputError): decode_frame(file)


def test_damaged_files_end_in_a_picture_or_a_named_error():
    "A small part of `python tests/fuzz_dicom.py`."
    import fuzz_dicom
    failures, readable = fuzz_dicom.run(400, seed=7)
    assert not failures, failures[0]
    assert readable > 80
