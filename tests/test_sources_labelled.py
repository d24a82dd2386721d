"""Data sets with labels, on fake copies with everything odd that real copies hold: what is read, what is named as a problem, and that nothing else happens."""
import pickle
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

import fakes_labelled as fakes
from fakes_labelled import SIZE, person
from fuzz_annotations import fuzz
from vasomim.core import ImageError, InputError, shared_dir
from vasomim.data.annotations import read_voc
from vasomim.data.sources.base import LABELS, check_split
from vasomim.data.sources.catalog import open_source
from vasomim.data.sources.folder import folder_source

SETS = {"arcade": ("arcade", fakes.arcade), "arcade-old": ("arcade", lambda root: fakes.arcade(root, old=True)), "arcade-stenosis": ("arcade-stenosis", fakes.arcade),
        "caxf": ("caxf", lambda root: fakes.paired(root/"CAXF").parent), "paired": ("paired", fakes.paired), "xcav": ("xcav", fakes.xcav), "stenosis": ("stenosis", fakes.stenosis),
        "dca1": ("dca1", fakes.dca1), "dca1-early": ("dca1", lambda root: fakes.dca1(root, early=True)), "folder": ("folder", fakes.generic)}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    "Every fake copy, once, inside a folder more than its author meant."
    made = {}
    def get(key):
        if key not in made:
            made[key] = tmp_path_factory.mktemp(key)
            SETS[key][1](made[key] / ("plain" if key == "folder" else "wrapped"))
        return made[key]
    return get


def problems(source): return {p.path: p.reason for p in source.problems}


@pytest.mark.parametrize("key", SETS)
def test_promises_of_every_reader(copies, key):
    folder, name = copies(key), SETS[key][0]
    source = open_source(folder, name)
    if not key.startswith("arcade"): assert open_source(folder).fingerprint == source.fingerprint      # recognised by itself
    assert len(source) == len({r.id for r in source}) and check_split(source) is source
    assert source.fingerprint == open_source(folder, name).fingerprint
    for p in source.problems: assert isinstance(p, ImageError) and str(folder) not in str(p), p
    assert not any("._" in text or "MACOSX" in text or "Thumbs" in text for text in [r.path for r in source] + [str(p) for p in source.problems])
    for r in pickle.loads(pickle.dumps(source)):
        assert r.source == source.name and "\\" not in r.path and len(pickle.dumps(r)) < 100_000
        try: image = r.load()
        except ImageError: assert key == "folder"; continue
        for kind in r.labels:
            assert kind in LABELS
            value = r.label(kind)
            if kind == "boxes": assert value.shape == (len(r.label("box_names")), 4) and value.dtype == np.float32
            elif kind != "box_names": assert value.shape == image.shape and value.dtype == (torch.uint8 if kind == "segment_map" else torch.bool)


@pytest.mark.parametrize("key", ["arcade", "arcade-old"])
def test_arcade_segments(copies, key):
    source = open_source(copies(key), "arcade")
    assert Counter(r.split for r in source) == {"train": 7, "val": 1, "test": 2}
    by = {(r.split, r.path.rsplit("/", 1)[1]): r for r in source}
    def segments(split, name): return by[split, name].label("segment_map")[0]
    one = segments("train", "1.png")
    assert (one[:10, :10] == 24).all() and (one[20:30, 20:30] == 24).all() and int((one > 0).sum()) == 200         # both outlines; the stenosis is no segment
    assert (segments("train", "2.png") == 25).any() and segments("train", "2.png")[48, 48] == 0                       # the middle of the star is outside
    assert (segments("train", "3.png")[:20, :20] == 6).all() and (segments("train", "10.png")[:, 10:15] == 1).all()
    assert (segments("train", "5.png")[:20, :20] == 2).all()                                                          # stated at half the size
    assert not by["train", "4.png"].labels and not by["train", "6.png"].labels
    truth = person(1).segments
    for split in ("val", "test"): assert (segments(split, "1.png").int() == truth.int()).float().mean() > 0.99     # 0-based ids; BOM, CRLF, folders in names
    said = " | ".join(map(str, source.problems))
    for text in ("annotation 7 is of image 1000", "77.png: is listed in", "99.png: is not listed", "an outline of 4 numbers", "outlines scaled", "pixels, its annotations are for 48 x 96: no label"): assert text in said, text
    assert len(source.problems) == 6 and any("1 train images have no segment" in n for n in source.notices)


def test_arcade_stenoses(copies):
    source = open_source(copies("arcade"), "arcade-stenosis")
    assert len(source) == 6 and not source.problems
    want = torch.stack([s.mask for s in person(0).stenoses]).any(0)
    for r in source: assert (r.label("stenosis_mask") == (want if r.path.endswith("1.png") else False)).float().mean() > 0.99      # despite equal annotation ids
    with pytest.raises(InputError, match="looks like arcade and like arcade-stenosis"): open_source(copies("arcade"))


def test_paired_folders(copies):
    source = open_source(copies("paired"))
    assert [bool(r.labels) for r in source] == [True, True, False, True, False, False] and (source[0].label("vessel_mask") == person(2).vessels).all()
    said = problems(source)
    assert set(said) == {"train/img/11.jpg", "test/label/3.png", "test/img/4.png", "test/label/77.png"} and "must be the same" in said["train/img/11.jpg"]


def test_xcav(copies):
    source = open_source(copies("xcav"))
    assert len(source) == 10 and sum("vessel_mask" in r.labels for r in source) == 1 and not any("CATH" in r.path for r in source)
    assert {(r.patient, r.primary, r.secondary) for r in source} == {("CVAI-1207", 44, 29), ("CVAI-1253", 0, -29), ("CVAI-2828", -2, 32), ("CVAI-2855", 26, 31)}
    assert len(source.problems) == 3 and any("our own" in n for n in source.notices)


def test_danilov(copies):
    source = open_source(copies("stenosis"))
    by = {r.path: r for r in source}
    assert by["14_001_5_0017.BMP"].label("boxes").tolist() == [[0, np.float32("28.700000762939453"), SIZE, 40], [50, 60, SIZE + 1, 70]]       # no shift, nothing cut
    assert by["14_002_1_0005.bmp"].label("boxes").tolist() == [[10, 20, 30, 40]] and by["14_001_29_0004.bmp"].sequence == "001_29"
    said = problems(source)
    assert set(said) == {"14_001_5_0017.xml", "14_002_1_0005.xml", "14_003_2_0007.bmp", "14_003_2_0009.xml", "14_055_1_0001.xml", "train_labels.csv"} and "EntitiesForbidden" in said["14_003_2_0009.xml"]
    assert sum("14_001_5_0016" in str(p) for p in source.problems) == 0 and sum("'14_004_1_0001': other boxes" in str(p) for p in source.problems) == 1      # a pixel is forgiven


def test_dca1(copies):
    source = open_source(copies("dca1"))
    assert [r.path for r in source] == ["2.pgm", "5.pgm", "9.pgm", "10.pgm", "44.pgm", "101.pgm", "DB134_107.pgm"] and [r.split for r in source] == ["train"] * 5 + ["test"] * 2
    by = {r.path: r for r in source}
    assert (by["2.pgm"].label("vessel_mask") == person(2).vessels).all() and (by["10.pgm"].load() - person(10).image).abs().max() < 0.001
    assert [bool(by["44.pgm"].label("vessel_mask")[0, i].any()) for i in range(4)] == [False, False, True, True]
    assert set(problems(source)) == {"5.pgm", "6_gt.pgm", "8.pgm", "9_gt.pgm"}
    assert Counter(r.split for r in open_source(copies("dca1-early"))) == {"train": 3, "test": 1}


def test_any_folder(copies):
    folder = copies("folder")
    source = open_source(folder)
    assert len(source) == 10 and [p for p in (r.path for r in source) if "_gt" in p or "/masks/" in p] == []
    labelled = {r.path: r for r in source if r.labels}
    assert {p.split("/", 1)[1] for p in labelled} == {"a.png", "case/images/k/1.jpg"} and all((r.label("vessel_mask") == person(3).vessels).all() for r in labelled.values())
    bad = set()
    for r in source:
        try: r.load()
        except ImageError as error: bad.add(r.path.rsplit("/", 1)[1])
    assert bad == {"zero.png", "text.png", "half.png"}


def test_nothing_is_turned_and_twelve_bits_are_noticed(tmp_path):
    source = folder_source(fakes.turned(tmp_path/"turned"))
    photo = next(r for r in source if r.path == "turned.jpg")
    bright, mask = photo.load()[0] > 0.5, photo.label("vessel_mask")[0]
    x1, y1, x2, y2 = read_voc(tmp_path/"turned/turned.xml").boxes[0].astype(int)
    box = torch.zeros(384, 512, dtype=torch.bool); box[y1:y2, x1:x2] = True
    assert bright.shape == (384, 512) and (bright == mask).float().mean() > 0.999 and (mask == box).all()
    with pytest.warns(UserWarning, match="4095 of 65535: 12-bit"):
        warnings.simplefilter("always"); assert source[0].load().max() < 0.07
    assert folder_source(tmp_path/"turned", bits=12)[0].load().max() == 1


def test_real_copies():
    "Where real copies are: all labels readable, nothing left out."
    for folder, name, count in (("arcade", "arcade", 1500), ("arcade", "arcade-stenosis", 700), ("danilov", "stenosis", 1092), ("dca1", "dca1", 60), ("dca1_more", "dca1", 27)):
        if (where := shared_dir("data", folder)) is None: pytest.skip("no real copies here")
        source = open_source(where, name)
        assert len(source) == count and not source.problems and all(r.labels for r in source)
        for r in source.records[::97]:
            kind = next(iter(r.labels))
            assert kind == "boxes" or r.label(kind).shape == r.load().shape


def test_damaged_files():
    "A small part of `python tests/fuzz_annotations.py`."
    assert fuzz(cases=300, seed=1).total() == 300
