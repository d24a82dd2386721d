"""The readers of the pre-training data sets on fake copies of every published layout."""
import os
import pickle
import shutil
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

from fakes_pretraining import FAKES, SIZE, XCAD_LAYOUTS, cadica, npy_header, picture, write, xa170k, xcad
from vasomim.core import ImageError, InputError
from vasomim.data.images import natural_key
from vasomim.data.packing import pack
from vasomim.data.sources import coronary_dominance as dominance
from vasomim.data.sources.base import check_split, split_groups
from vasomim.data.sources.cadica import cadica_source
from vasomim.data.sources.catalog import open_source, recognise
from vasomim.data.sources.xa170k import xa170k_source

COUNTS = {"xa170k": 10, "cadica": 9, "syntax": 6, "xcad": 8, "coronary-dominance": 9, "angiodata": 10}
PROBLEMS = {"xa170k": 2, "cadica": 7, "syntax": 0, "xcad": 1, "coronary-dominance": 7, "angiodata": 1}
SECRETS = (".xlsx", ".csv", ".mat", ".ima", ".dcm")   # beside the images, never to be opened
_opened = None
sys.addaudithook(lambda event, args: _opened.append(os.fspath(args[0])) if event == "open" and _opened is not None and isinstance(args[0], (str, os.PathLike)) else None)


@pytest.fixture
def opened():
    "The files that are opened during a test."
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture(params=FAKES)
def fake(request, tmp_path):
    "(name, root) of a fake copy."
    return request.param, FAKES[request.param](tmp_path)


def by_name(source): return {r.path.rpartition("/")[2] + ("" if r.index is None else f"#{r.index}"): r for r in source}


def test_recognised_and_counted(fake, tmp_path):
    name, root = fake
    found, at = recognise(root)
    assert found.name == name and at == root
    source = open_source(root)
    assert len(source) == COUNTS[name] and len(source.problems) == PROBLEMS[name], "\n".join(map(str, source.problems))
    assert source.licence and source.citation and any("published" in n for n in source.notices)
    text = "\n".join([*map(str, source.problems), *source.notices])
    assert str(tmp_path) not in text and all(p.path and not p.path.startswith("/") for p in source.problems)
    assert not any(bad in text + "".join(r.path for r in source) for bad in (".DS_Store", "Thumbs", "._", "__MACOSX"))


def test_wrapped(fake, tmp_path):
    name, root = fake
    for wrapper in (tmp_path/"one", tmp_path/"one/two"):      # each round moves it one level down
        wrapper.mkdir()
        root = shutil.move(root, wrapper) and wrapper/root.name
        assert open_source(wrapper, name).fingerprint and recognise(wrapper)[1] == root
    (tmp_path/"one/two/mine.png").touch()
    assert recognise(root)[0].name == name
    with pytest.raises(InputError, match="does not look like"): open_source(tmp_path/"one", name)       # something of the user lies beside it


def test_records(fake):
    name, root = fake
    source = open_source(root)
    assert len({r.id for r in source}) == len(source) and all("\\" not in r.path for r in source)
    again = pickle.loads(pickle.dumps(source))
    assert list(again) == list(source) and again.fingerprint == source.fingerprint == open_source(root).fingerprint
    for r in again:
        if r.path.endswith("LCA/8.npz"): continue
        x = r.load()
        assert x.shape == (1, SIZE, SIZE) and x.dtype == torch.float32 and 0 <= x.min() < x.max() <= 1, r.id
    check_split(source)
    plain = source.where(lambda r: r.split in ("", "train"))
    check_split(split_groups(plain, {"train": 0.5, "test": 0.5}))
    for folder in {r.path.rpartition("/")[0] for r in source}:
        names = [r.path for r in source if r.path.rpartition("/")[0] == folder]
        assert names == sorted(names, key=natural_key)


def test_fingerprint_follows_the_files(fake):
    _, root = fake
    source = open_source(root)
    os.utime(root/source[0].path, (1, 1))
    assert open_source(root).fingerprint != source.fingerprint


def test_listing_opens_no_image(fake, opened):
    name, root = fake
    source = open_source(root)
    read = [p for p in opened if p.startswith(str(root)) and not os.path.isdir(p)]
    images = {str(root/r.path) for r in source} if name != "coronary-dominance" else set()
    allowed = {p for p in images if name == "angiodata" and "/Patient_2/Coro_2/frame_0001" in p}           # a possible copy and its original are compared
    assert not images & set(read) - allowed and not any(p.lower().endswith(SECRETS) for p in read), read


def test_packing(fake, tmp_path):
    name, root = fake
    packed = pack(open_source(root), tmp_path/"packed", 32, progress=False)
    bad = packed.info["bad"]
    assert len(packed) + len(bad) == COUNTS[name] and len(bad) == (2 if name == "coronary-dominance" else 0)
    assert not any(str(tmp_path) in b["id"] + b["reason"] for b in bad)


def test_empty_and_unreadable(fake):
    name, root = fake
    for folder, _, files in os.walk(root):
        for f in files: os.unlink(os.path.join(folder, f))
    with pytest.raises(InputError) as error: open_source(root, name)
    assert "no " in str(error.value) or "none" in str(error.value) or "does not look like" in str(error.value)


def test_damaged_images_do_not_stop_the_rest(fake, tmp_path):
    name, root = fake
    if name == "coronary-dominance": return          # its fake has damaged files of its own
    first = open_source(root)[0]
    (root/first.path).write_bytes(b"")
    packed = pack(open_source(root), tmp_path/"packed", 32, progress=False)
    assert len(packed) == COUNTS[name] - 1 and [b["id"] for b in packed.info["bad"]] == [first.id]


def test_xa170k(tmp_path):
    root = xa170k(tmp_path)
    source = by_name(xa170k_source(root))
    assert open_source(tmp_path).fingerprint == open_source(root).fingerprint                             # with and without dataset/
    assert [n for n in source if n.startswith("Study")] == ["Study00001_LCA_sequence3_slice12.png", "Study00002_LCA_sequence3_slice10.png", "Study00002_RCA_sequence3_slice11.png", "Study00010_LCA_sequence3_slice12.png"]
    r = source["Study00002_RCA_sequence3_slice11.png"]
    assert (r.patient, r.artery, r.frame) == ("coronarydominance/Study00002", "RCA", 11) and r.group == source["Study00002_LCA_sequence3_slice10.png"].group and not r.labels
    assert torch.equal(source["p1_v2_00015.png"].label("pseudo_mask"), picture(2).vessels)
    assert torch.equal(source["000_PPA_44_PSA_00_8.png"].label("pseudo_mask"), picture(0).vessels)        # _filter_92
    with pytest.raises(ImageError, match="^cadica_frangi/p2_v2_00015.png: is a mask of 32 x 64"): source["p2_v2_00015.png"].label("pseudo_mask")
    with pytest.raises(InputError, match="has no pseudo_mask"): source["picture 7.png"].label("pseudo_mask")
    assert source["picture 7.png"].group.endswith("cadica/picture 7.png")
    assert {str(p) for p in xa170k_source(root).problems} == {"cadica/picture 7.png: has no mask in cadica_frangi", "xcad_filter_92/nobody.png: is a mask without image in xcad"}
    for n in ("cadica_frangi", "xcad_filter_92"): shutil.rmtree(root/n)
    assert not xa170k_source(root).problems and not any(r.labels for r in xa170k_source(root))                # as it is downloaded


def test_xa170k_is_listed_in_seconds(tmp_path):
    count = 20_000
    for folder in ("xcad", "cadica"): (tmp_path/folder).mkdir()
    for i in range(count): os.close(os.open(tmp_path/f"xcad/{i:05d}_PPA_-29_PSA_29_2.png", os.O_CREAT))
    begin = time.perf_counter()
    assert len(open_source(tmp_path)) == count
    assert time.perf_counter() - begin < 10      # about 1 s; a reader that opens the files needs much more for 170,000


@pytest.mark.parametrize("place", ["selectedVideos", "."])
def test_cadica(tmp_path, place):
    root = cadica(tmp_path, place)
    source = open_source(tmp_path/"CADICA")
    names = by_name(source)
    assert list(names) == ["p1_v2_00001.png", "p1_v3_00000.png", "p1_v10_00000.png", "p1_v10_00001.png", *(f"p10_v2_{k:05d}.png" for k in range(3, 8))]
    lesion = names["p10_v2_00003.png"]
    assert lesion.label("boxes").tolist() == [[10, 11, 30, 32], [1, 2, 4, 6]] and lesion.label("box_names") == ("p70_90", "p0_20") and lesion.label("boxes").dtype == np.float32
    assert (lesion.patient, lesion.sequence, lesion.frame, lesion.time, lesion.artery) == ("p10", "p10_v2", 3, 0.0, "LCA") and names["p10_v2_00005.png"].time == 200.0
    negative = names["p1_v10_00001.png"]
    assert negative.label("boxes").shape == (0, 4) and negative.label("box_names") == () and negative.artery == "LCA"
    for n in ("p10_v2_00004.png", "p10_v2_00005.png", "p10_v2_00006.png", "p10_v2_00007.png"): assert "boxes" not in names[n].labels, n    # empty, unknown grade, short line, no file
    for n in ("p1_v2_00001.png", "p1_v3_00000.png"): assert "boxes" not in names[n].labels, n                                              # on no list, on both
    told = "\n".join(map(str, source.problems))
    for part in ("p10_v2_00099', which is not", "00004.txt: holds no box", "'1 2 3 4 lesion' is not", "'1 2 3 p0_20' is not", "00077.txt: has no frame", "p1_v4_selectedFrames.txt: is missing", "cover.png: is not called p1_v10_"): assert part in told, part
    assert any("1 videos of CADICAprojections.json" in n and "p42_v1" in n for n in source.notices)
    assert (len(cadica_source(root, "selected")), len(cadica_source(root, "all"))) == (12, 14)
    assert {r.path.partition("/")[0] for r in cadica_source(root, "all")} == {"selectedVideos", "nonselectedVideos"}
    with pytest.raises(InputError, match="did you mean 'selected'"): open_source(root, frames="select")
    with pytest.raises(InputError, match="unexpected keyword"): open_source(root, frame="key")


@pytest.mark.parametrize("text", ["{", "[]", '{"videosLCA": 3}', "\0", ""])
def test_cadica_damaged_projections(tmp_path, text):
    root = cadica(tmp_path)
    write(root/"selectedVideos/CADICAprojections.json", text)
    source = cadica_source(root)
    assert len(source) == COUNTS["cadica"] and not any(r.artery for r in source) and any("no artery is known" in str(p) for p in source.problems)


def test_cadica_labels_are_in_the_fingerprint(tmp_path):
    root = cadica(tmp_path)
    before = cadica_source(root).fingerprint
    write(root/"selectedVideos/p10/v2/groundtruth/p10_v2_00003.txt", "1 1 1 1 p99")
    between = cadica_source(root).fingerprint
    (root/"selectedVideos/p1/nonLesionVideos.txt").unlink()
    assert len({before, between, cadica_source(root).fingerprint}) == 3


def test_syntax(tmp_path):
    source = open_source(FAKES["syntax"](tmp_path))
    assert {r.path: r.patient for r in source} == {"loose/12_a.png": "12", "loose/12_b.png": "12", "loose/nobody.png": "", "Patient 1/1.JPG": "Patient 1", "Patient 10/1.png": "Patient 10", "patient_02/a/b/1.jpeg": "patient_02"}
    assert len({r.group for r in source}) == 5 and any("4 patients were guessed" in n for n in source.notices) and any("1 DICOM files" in n for n in source.notices)


@pytest.mark.parametrize("layout", XCAD_LAYOUTS)
def test_xcad(tmp_path, layout):
    source = open_source(xcad(tmp_path, layout))
    train, test, masks = XCAD_LAYOUTS[layout]
    assert {r.path.rpartition("/")[0] for r in source} == {train, test} and [r.split for r in source] == ["train"]*5 + ["test"]*3
    names = by_name(source)
    r, s = names["003_PPA_-29_PSA_29_2.png"], names["000_PPA_44_PSA_00_8.png"]
    assert (r.primary, r.secondary, s.primary, s.secondary, r.labels) == (-29.0, 29.0, 44.0, 0.0, {})
    assert names["064_PPA_-5_PSA_-34_1.png"].group == names["064_PPA_48_PSA_42_5.png"].group and len({r.group for r in source}) == 7
    assert torch.equal(names["00087_33.png"].label("vessel_mask"), picture(1).vessels) and names["00087_33.png"].frame == 33
    assert [str(p) for p in source.problems] == [f"{test}/00214_29.png: has no mask in {masks}"]
    assert any("5 train images, published are 1,621; 3 test images, published are 126" in n for n in source.notices)


def test_coronary_dominance(tmp_path):
    root = FAKES["coronary-dominance"](tmp_path)
    source = open_source(root)
    r = next(r for r in source if r.path.endswith("3.4.npz") and r.index == 2)
    assert (r.patient, r.artery, r.frame, r.primary, r.secondary) == ("Study00001_1.1.11.2", "LCA", 2, -29.5, None)
    assert (r.load() - picture(2).image).abs().max() < 1/500
    single, packed = (next(r for r in source if r.path.endswith(n)) for n in ("3.10.npz", "RCA/1.npz"))
    assert single.index == 0 and (single.load() - picture(1).image).abs().max() < 1/500 and single.primary is None
    assert (packed.primary, packed.secondary, packed.artery, packed.patient) == (30.0, None, "RCA", "Study00010_1.1.11.9")
    told = {p.path.rpartition("/")[2]: p.reason for p in source.problems}
    for n, part in (("1.npz", "Python objects"), ("2.npz", "neither pixel_array nor frames"), ("3.npz", "shape (frames, H, W)"), ("4.npz", "cannot be read"), ("5.npz", "GiB of memory"), ("6.npz", "cannot be read")): assert part in told[n], (n, told)
    short = next(r for r in source if r.path.endswith("8.npz"))
    with pytest.raises(ImageError, match="8.npz#0: cannot be read"): short.load()
    assert not (tmp_path/"exploded").exists()                          # nothing was unpickled,
    np.load(root/"main_others/bad quality/Right Dominance/Study00010_1.1.11.9/LCA/1.npz", allow_pickle=True)["pixel_array"]
    assert (tmp_path/"exploded").exists()                              # but the trap works


def test_coronary_dominance_limits(tmp_path, monkeypatch):
    for descr, shape, part in (("|O", (2, 8, 8), "Python objects"), ("<U4", (2, 8, 8), "numbers of shape"), ("<c8", (2, 8, 8), "numbers of shape"), ("<f8", (0, 8, 8), "numbers of shape"), ("<f8", (1, 2, 8, 8), "numbers of shape"), ("<f8", (10**9, 10**9, 10**9), "GiB")):
        with zipfile.ZipFile(tmp_path/"x.npz", "w") as z: z.writestr("pixel_array.npy", npy_header(shape, descr))
        with pytest.raises(ImageError) as error: dominance.series_header(tmp_path/"x.npz")
        assert part in error.value.reason, error.value
    np.savez(tmp_path/"x.npz", pixel_array=np.zeros((4, 8, 8)))
    monkeypatch.setattr(dominance, "MAX_SERIES_BYTES", 1000)
    with pytest.raises(ImageError, match="memory"): dominance.series_header(tmp_path/"x.npz")


def test_coronary_dominance_damage_anywhere(tmp_path):
    "A series that is cut or changed at any place, in the archive or in the header of its array, is an ImageError or still a picture, never another error."
    np.savez_compressed(tmp_path/"x.npz", pixel_array=np.arange(3*8*8, dtype=float).reshape(3, 8, 8), primary_positioner_angle=np.array(3.0))
    whole, array, rng = (tmp_path/"x.npz").read_bytes(), npy_header((3, 8, 8)) + bytes(3*8*8*8), np.random.default_rng(0)
    for i in range(900):
        data = bytearray(array if i % 3 == 0 else whole)
        if i % 3 == 1: del data[rng.integers(len(data)):]
        else: data[rng.integers(100 if i % 3 == 0 else len(data))] = rng.choice(list(b"()[]{},'01289<>|fiOub:-\0\n\xff"))
        if i % 3 == 0:
            with zipfile.ZipFile(tmp_path/"y.npz", "w") as z: z.writestr("pixel_array.npy", bytes(data))
        else: (tmp_path/"y.npz").write_bytes(bytes(data))
        try: assert dominance._decode(tmp_path/"y.npz").ndim == 3
        except ImageError: pass


def test_angiodata(tmp_path):
    source = open_source(FAKES["angiodata"](tmp_path))
    assert [r.path for r in source][:4] == [f"Patient_2/Coro_2/frame_{n}.jpg" for n in ("00009", "00010 (1)", "00010", "00011")] and source[-1].patient == "Patient_10"
    assert [str(p) for p in source.problems] == ["Patient_2/Coro_2/frame_00011 (1).jpg: is a copy of frame_00011.jpg and left out"]
    assert source[1].frame == 10 and {r.sequence for r in source} == {"Patient_2/Coro_2", "Patient_2/Coro_10", "Patient_10/Coro_1"}
