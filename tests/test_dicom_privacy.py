"""Nothing of a patient gets out: every identifying attribute of the standard (PS3.15, Basic Profile) is filled with a marker of its own, everywhere a file can hold
one, and every byte that is written or said afterwards is searched."""
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import uid
from pydicom.datadict import dictionary_has_tag
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag

selector = pytest.importorskip("dicomanonymizer.dicomfields_selector", reason="dicom-anonymizer brings the list of identifying attributes")
pytest.importorskip("gdcm", reason="python-gdcm writes JPEG")
import fakes_dicom as fakes
from conftest import ROOT
from conftest import TINY
from conftest import environment

PROFILE = selector.dicom_anonymization_database_selector("dicomfields_2026c")["ALL_TAGS"]
MASKED = {(0x5000, 0x3000): "curve", (0x6000, 0x4000): "overlay comment", (0x6000, 0x3000): "overlay"}     # the entries that stand for many groups
TAGS = [Tag(t) for t in PROFILE if len(t) == 2 and t[0] > 2] + [Tag(t) for t in MASKED]       # group 0 is of messages, not of files; group 2 is the file's head, below
MARKER = re.compile(rb"XQ[A-Z0-9]{5,8}QX|1\.9\.77\d{6}\.\d+9|8\d{6}7\d{5}")
NAME, FOLDER = "XQNAMESQX^ANNA", "XQFOLDERQX 19500101"


class Markers(dict):
    "marker -> where it was put; each is unique and made of what its kind of field may hold."
    def __call__(self, vr, where):
        n = len(self) + 1
        text = f"1.9.77{n:06d}.{n}9" if vr == "UI" else f"8{n:06d}7{n:05d}" if vr in ("DS", "IS", "DA", "TM", "DT", "AS") else f"XQ{n:06d}QX"
        self[text] = where
        assert MARKER.fullmatch(text.encode())
        return text.encode()


def every_attribute(markers, where, nested=0):
    "All identifying attributes as raw elements; sequences hold a name."
    out = []
    for tag in TAGS:
        vr = MASKED and {0x3000: "OW", 0x4000: "LT"}.get(tag.element) if tag.group in (0x5000, 0x6000) else dictionary_VR(tag) if dictionary_has_tag(tag) else "LO"
        if vr == "SQ":
            item = Dataset(); item[Tag("PatientName")] = fakes.raw("PatientName", "PN", markers("PN", f"{where}/{tag}/PatientName"))
            if not nested: item[Tag("ContentSequence")] = _sequence("ContentSequence", item_of(fakes.raw("TextValue", "UT", markers("UT", f"{where}/{tag}/ContentSequence"))))
            out.append(_sequence(tag, item))
        else: out.append(fakes.raw(tag, vr if len(vr) == 2 else "LO", markers(vr, f"{where}/{tag}")))
    return out


def item_of(*elements):
    item = Dataset()
    for e in elements: item[e.tag] = e
    return item


def _sequence(tag, *data_sets):
    from pydicom.dataelem import DataElement
    return DataElement(Tag(tag), "SQ", list(data_sets))


def everywhere(markers, name):
    "What a file can carry besides its pixels: the attributes at the top, in kept and in other sequences, private blocks, a curve, overlays and a thumbnail."
    nested = lambda where: item_of(*every_attribute(markers, f"{name}/{where}", nested=1))
    voi = nested("VOILUTSequence"); voi.update(fakes.data(LUTDescriptor=("US", b"\0\1\0\0\x10\0"), LUTData=("OW", bytes(512))))
    icon = fakes.data(Rows=8, Columns=8, BitsAllocated=8, PixelData=("OB", markers("OB", f"{name}/icon") * 8))
    private = [fakes.raw((0x0009, 0x0010), "LO", markers("LO", f"{name}/private creator")), fakes.raw((0x0009, 0x1001), "LO", markers("LO", f"{name}/private")), _sequence((0x0009, 0x1002), nested("private sequence"))]
    kept = [fakes.raw(k, vr, markers(vr, f"{name}/{k}")) for k, vr in (("VOILUTFunction", "CS"), ("PositionerMotion", "CS"), ("CineRate", "IS"), ("FrameTime", "LO"), ("ShutterShape", "CS"), ("PresentationLUTShape", "CS"), ("Modality", "CS"))]
    return [*every_attribute(markers, name), *private, *kept, _sequence("VOILUTSequence", voi), _sequence("SharedFunctionalGroupsSequence", nested("SharedFunctionalGroupsSequence")),
            _sequence("MaskSubtractionSequence", nested("MaskSubtractionSequence")), _sequence("AnatomicRegionSequence", nested("AnatomicRegionSequence")), _sequence("IconImageSequence", icon)]


def export(folder, markers):
    "A hospital's export: good files of several codings, and files that fail in several ways."
    gray, place = fakes.gray(8, 6), folder / FOLDER / NAME
    meta = lambda name: [("MediaStorageSOPInstanceUID", markers("UI", f"{name}/meta").decode()), ("SourceApplicationEntityTitle", markers("AE", f"{name}/meta").decode()),
                         ("ImplementationVersionName", markers("SH", f"{name}/meta").decode()), ("SendingApplicationEntityTitle", markers("AE", f"{name}/meta").decode())]
    def add(name, pixels=gray, syntax=uid.ExplicitVRLittleEndian, streams=None, **values):
        more = [e for e in everywhere(markers, name) if e.tag not in {Tag(k) for k in values}]
        fakes.write(place / f"{NAME}_{name}", pixels, syntax, streams, more=more, meta=meta(name), **values)
    add("plain.dcm"); add("twelve", fakes.gray(12, 6), BitsStored=12); add("lossless.dcm", syntax=uid.JPEGLosslessSV1, streams=fakes.encode(gray, uid.JPEGLosslessSV1))
    add("rle.IMA", syntax=uid.RLELossless, streams=fakes.encode(gray, uid.RLELossless)); add("deflated.dcm", syntax=uid.DeflatedExplicitVRLittleEndian)
    good = 5
    add("lying.dcm", syntax=uid.JPEGLosslessSV1, streams=fakes.encode(gray, uid.JPEGBaseline8Bit)); add("report.dcm", PixelData=None); add("burned.dcm", BurnedInAnnotation="YES")
    for keyword, vr in (("PhotometricInterpretation", "CS"), ("Rows", "LO"), ("BitsAllocated", "LO"), ("NumberOfFrames", "IS"), ("BurnedInAnnotation", "CS"), ("BitsStored", "LO")): add(f"{keyword}.dcm", **{keyword: (vr, markers(vr, keyword))})
    for name, size in (("head", 3000), ("middle", -30000), ("pixels", -9000)):
        whole = (place / f"{NAME}_plain.dcm").read_bytes(); (place / f"{NAME}_cut_{name}.dcm").write_bytes(whole[:size])
    wrong = (place / f"{NAME}_plain.dcm").read_bytes(); (place / f"{NAME}_uid.dcm").write_bytes(wrong.replace(b"1.2.840.10008.1.2.1\0", b"1.9.77.XQSYNTAXQX\0\0\0", 1)); markers["XQSYNTAXQX"] = "transfer syntax"
    markers["XQNAMESQX"], markers["XQFOLDERQX"] = "file name", "folder name"
    return good


def leaks(markers, *places):
    "Markers, plain or as an unkeyed hash, in the files below the places (folders, files) or in texts."
    def contents(place):
        if isinstance(place, str): yield "what was said", place.encode()
        elif place.is_file(): yield place.name, place.read_bytes()
        else:
            for f in sorted(place.rglob("*")):
                yield "a name", str(f.relative_to(place)).encode()
                if f.is_file(): yield f.name, f.read_bytes()
    secrets = [text for text, where in markers.items() if "(0010,0020)" in where or "(0020,000d)" in where.lower() or "name" in where]
    hashes = {getattr(hashlib, a)(text.encode()).hexdigest()[:12]: f"{a} of {markers[text]}" for text in secrets for a in ("md5", "sha1", "sha256")}
    found = []
    for name, content in (pair for place in places for pair in contents(place)):
        content = content.replace(b"\0", b"")                                     # UTF-16 as well
        found += [(markers[m], name) for m in {m.decode() for m in MARKER.findall(content)} & markers.keys()]
        found += [(hashes[h], name) for h in {h.decode() for h in re.findall(rb"(?<![0-9a-f])[0-9a-f]{12}", content)} & hashes.keys()]
    return found


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    "(folder, markers, number of good files)."
    folder, markers = tmp_path_factory.mktemp("hospital") / "export", Markers()
    good = export(folder, markers)
    assert len(markers) > 600 * 10 and len(PROFILE) >= 655
    return folder, markers, good


SCRIPT = """
import logging, sys, warnings
logging.basicConfig(level=logging.DEBUG); warnings.simplefilter("always")
from vasomim.anatomy.extract import extract_vessels
from vasomim.data.dicom import read_header
from vasomim.data.packing import pack
from vasomim.data.sources.catalog import open_source
source = open_source(sys.argv[1])
print(source, *source.notices, *source.problems, *source.records, sep="\\n")
for record in source:
    try: record.load()
    except ValueError as error: print(repr(error))
data = pack(source, sys.argv[2], 48, extract_vessels, extractor_id="test")
print(data.describe(), data.provenance.to_string(), data.info)
for window in (0, None): open_source(sys.argv[1], "dicom", window=window, burned_in=True)
for file in sorted(__import__("pathlib").Path(sys.argv[1]).rglob("*")):
    try: print(read_header(file))
    except ValueError as error: print(error)
read_header(sys.argv[3])            # a traceback
"""


def test_the_search_finds_what_is_there(hospital):
    folder, markers, _ = hospital
    there = {where for where, _ in leaks(markers, folder)}
    missing = {m: w for m, w in markers.items() if w not in there and "deflated" not in w and "(0088,0200)" not in w}     # one is compressed, one has a thumbnail instead
    assert not missing, list(missing.items())[:5]


def test_packing_says_and_writes_nothing_of_a_patient(hospital, tmp_path):
    folder, markers, good = hospital
    bad = next(folder.rglob("*lying.dcm")).with_name(f"{NAME}_Rows.dcm")
    result = subprocess.run([sys.executable, "-c", SCRIPT, folder, tmp_path / "packed", bad], env=environment(VASOMIM_SALT_FILE=str(tmp_path / "config" / "salt"), HOME=str(tmp_path / "home")), cwd=tmp_path, capture_output=True, text=True)
    said = result.stdout + result.stderr
    assert "Traceback" in result.stderr and result.stderr.rstrip().endswith("has no usable Rows and Columns"), result.stderr[-2000:]
    info = json.loads((tmp_path / "packed" / "packed.json").read_text(encoding="utf-8"))
    assert info["count"] >= 6 * good and info["bad"] and info["problems"]
    traceback = result.stderr[result.stderr.rindex("Traceback"):]
    assert not leaks(markers, result.stdout, result.stderr, tmp_path / "packed", traceback)
    salt = (tmp_path / "config" / "salt").read_text().strip()
    assert salt not in said and not [f for f in (tmp_path / "packed").rglob("*") if salt.encode() in f.read_bytes()]


def test_the_job_says_and_writes_nothing_of_a_patient(hospital, tmp_path):
    "The notebook, as its users start it: packed data, run folder, executed notebook, and what is printed."
    folder, markers, good = hospital
    options = {**TINY, "epochs": 1, "data_dir": str(folder), "run_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "packed"), "log_every": 1}
    options.pop("save_every", None)
    (tmp_path / "options.json").write_text(json.dumps(options), encoding="utf-8")       # JSON is YAML
    command = [Path(sys.executable).with_name("papermill"), ROOT / "nbs" / "pretrain.ipynb", tmp_path / "out.ipynb", "-k", "python3", "--log-output", "-f", tmp_path / "options.json"]
    result = subprocess.run(command, env=environment(VASOMIM_SALT_FILE=str(tmp_path / "config" / "salt")), cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    packed = [json.loads(f.read_text(encoding="utf-8")) for f in (tmp_path / "packed").rglob("packed.json")]
    assert (tmp_path / "run" / "encoder" / "model.safetensors").exists() and [p["source"]["name"] for p in packed] == ["dicom"] and packed[0]["count"] >= 6 * good and packed[0]["problems"]
    assert not leaks(markers, result.stdout, result.stderr, *[p for p in tmp_path.iterdir() if p.name != "config"])
