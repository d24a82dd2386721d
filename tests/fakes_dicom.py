"DICOM files made of phantom pixels: one for every way in which real ones differ, lie or break."
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom import dcmread
from pydicom import dcmwrite
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.encaps import generate_frames
from pydicom.pixels import get_encoder
from pydicom.tag import Tag

from vasomim.data.phantom import phantom_sequence

XA, ENHANCED, CAPTURE, SR, DIR = (f"1.2.840.10008.{k}" for k in ("5.1.4.1.1.12.1", "5.1.4.1.1.12.1.1", "5.1.4.1.1.7", "5.1.4.1.1.88.11", "1.3.10"))
SHAPES = dict(rectangular=dict(ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge=-3, ShutterRightVerticalEdge=60, ShutterUpperHorizontalEdge=5, ShutterLowerHorizontalEdge=99),
              circular=dict(ShutterShape="CIRCULAR", CenterOfCircularShutter=[30, 40], RadiusOfCircularShutter=20),
              polygonal=dict(ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=[1, 1, 1, 64, 64, 32]))


@lru_cache
def gray(bits=8, frames=3, size=64):
    "(frames, size, size) stored values of a simulated run that uses all bits."
    run = phantom_sequence(11, frames, size=size).images[:, 0].numpy()
    return np.round(run * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def raw(tag, vr, value):
    "An element whose bytes are written as they are, valid or not."
    value = value + b"\0" * (len(value) % 2)
    return RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)


def items(**sequences):
    "Sequences of one item each, nested: items(A=dict(B=1))."
    return {k: [data(**v)] if isinstance(v, dict) else [data(**i) for i in v] for k, v in sequences.items()}


def data(**values):
    "A data set; bytes and (VR, bytes) are written as they are."
    ds = Dataset()
    for keyword, value in values.items():
        if isinstance(value, tuple): ds[keyword] = raw(keyword, *value)
        elif value is not None: setattr(ds, keyword, value)
    return ds


def write(path, pixels=None, syntax=uid.ExplicitVRLittleEndian, streams=None, preamble=True, more=(), meta=(), **values):
    "A file of (frames, rows, columns[, 3]) pixels or compressed streams; `values` replace what it would say, None leaves it out."
    path, implicit, big = Path(path), syntax == uid.ImplicitVRLittleEndian, syntax == uid.ExplicitVRBigEndian
    pixels = gray() if pixels is None else pixels
    bits, colour = pixels.dtype.itemsize * 8, pixels.ndim == 4
    stored = values.get("BitsStored", bits)
    said = dict(SOPClassUID=XA, SOPInstanceUID=f"1.2.3.{sum(path.name.encode())}.{len(path.name)}", StudyInstanceUID="1.2.3.4", SeriesInstanceUID="1.2.3.4.5", Modality="XA", PatientID="0012345",
                PatientName="Doe^John", Rows=pixels.shape[1], Columns=pixels.shape[2], SamplesPerPixel=3 if colour else 1, PhotometricInterpretation="RGB" if colour else "MONOCHROME2",
                BitsAllocated=bits, BitsStored=bits, HighBit=stored - 1 if isinstance(stored, int) else None, PixelRepresentation=0, NumberOfFrames=len(pixels), BurnedInAnnotation="NO")
    ds = data(**{**said, **values})
    if "PixelData" not in values:
        plain = pixels.astype(pixels.dtype.newbyteorder("<>"[big])).tobytes() + b"\0" * (pixels.nbytes % 2)
        if big and bits == 8: plain = np.frombuffer(plain, "u2").byteswap().tobytes()      # words, even where pixels are bytes
        ds.PixelData = encapsulate(streams) if streams else plain
        ds["PixelData"].VR = "OB" if streams or (bits == 8 and not big) else "OW"
    for element in more: ds[element.tag] = element
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID, ds.file_meta.TransferSyntaxUID = str(values.get("SOPClassUID", XA)), said["SOPInstanceUID"], syntax
    for keyword, value in meta: setattr(ds.file_meta, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.preamble = b"\0" * 128
    dcmwrite(path, ds, implicit_vr=implicit, little_endian=not big, force_encoding=True)
    if not preamble: path.write_bytes(path.read_bytes()[132:])
    return path


def encode(pixels, syntax, stored=None):
    "Compressed streams, one per frame."
    stored = stored or pixels.dtype.itemsize * 8
    options = dict(rows=pixels.shape[1], columns=pixels.shape[2], samples_per_pixel=1, number_of_frames=1, photometric_interpretation="MONOCHROME2", bits_allocated=pixels.dtype.itemsize * 8,
                   bits_stored=stored, pixel_representation=0)
    if syntax == uid.JPEGLSNearLossless: options["jls_error"] = 2
    if syntax == uid.JPEG2000: options["j2k_cr"] = [4]
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEGLossless, uid.JPEGLosslessSV1): return _gdcm(pixels, syntax, stored)
    return [get_encoder(syntax).encode(frame.tobytes(), **options) for frame in pixels]


def _gdcm(pixels, syntax, stored):
    "Frames as JPEG: GDCM turns a whole file into another."
    import gdcm
    with TemporaryDirectory() as folder:
        before, after = write(Path(folder, "native.dcm"), pixels, BitsStored=stored), Path(folder, "jpeg.dcm")
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(before)); assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax)))); change.SetInput(reader.GetImage()); assert change.Change()
        writer.SetFileName(str(after)); writer.SetFile(reader.GetFile()); writer.SetImage(change.GetOutput()); assert writer.Write()
        return list(generate_frames(dcmread(after).PixelData, number_of_frames=len(pixels)))


LOSSLESS = (uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless)
LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGLSNearLossless, uid.JPEG2000)


def enhanced(frames=3):
    "What an enhanced file says of its frames, in functional groups."
    per_frame = [items(PositionerPositionSequence=dict(PositionerPrimaryAngle=10.0 + i, PositionerSecondaryAngle=-5.0), FrameVOILUTSequence=dict(WindowCenter=100 + i, WindowWidth=100)) for i in range(frames)]
    shared = items(FramePixelDataPropertiesSequence=dict(ImagerPixelSpacing=[0.2, 0.2]), XRayGeometrySequence=dict(DistanceSourceToDetector=1000.0, DistanceSourceToPatient=750.0),
                   CollimatorShapeSequence=dict(CollimatorShape="CIRCULAR", CenterOfCircularCollimator=[32, 32], RadiusOfCircularCollimator=30))
    return dict(SOPClassUID=ENHANCED, **items(SharedFunctionalGroupsSequence=shared, PerFrameFunctionalGroupsSequence=per_frame))


def good_files(folder):
    "{name: file} of everything that can be read, in one flat folder."
    f, out, twelve, ten = Path(folder), {}, gray(12), gray(10)
    def add(name, *a, file=None, **kw): out[name] = write(f / (file or f"{name}.dcm"), *a, **kw)
    add("mono2"); add("mono1", PhotometricInterpretation="MONOCHROME1"); add("ten", ten, BitsStored=10); add("twelve", twelve, BitsStored=12); add("sixteen", gray(16)); add("garbage", ten | 0xC800, BitsStored=10)
    add("single", gray()[:1], NumberOfFrames=None); add("frames_absent", NumberOfFrames=None); add("frames_zero", NumberOfFrames=0); add("frames_empty", NumberOfFrames=("IS", b"")); add("frames_large", NumberOfFrames=7); add("frames_small", NumberOfFrames=2)
    add("time", FrameTime="66.7"); add("vector", FrameTimeVector=[0, 30, 40]); add("vector_short", FrameTimeVector=[0, 30]); add("rate", CineRate=25)
    add("moving", PositionerMotion="DYNAMIC", PositionerPrimaryAngle=20, PositionerPrimaryAngleIncrement=[0, 2, 5], PositionerSecondaryAngle=-10, PositionerSecondaryAngleIncrement=3)
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian): add(syntax.name.replace(" ", "_"), twelve, syntax, BitsStored=12)
    add("big_8", syntax=uid.ExplicitVRBigEndian); add("big_8_odd", gray()[:, :63, :63].copy(), uid.ExplicitVRBigEndian)
    for syntax in LOSSLESS: add(f"lossless_{syntax.split('.')[-1]}", twelve, syntax, encode(twelve, syntax, 12), BitsStored=12)
    for syntax in LOSSY: add(f"lossy_{syntax.split('.')[-1]}", gray(), syntax, encode(gray(), syntax))
    add("width_0", WindowCenter=128, WindowWidth=0); add("presets", WindowCenter=[128, 60], WindowWidth=[256, 40]); add("sigmoid", WindowCenter=128, WindowWidth=100, VOILUTFunction="SIGMOID")
    ramp = np.linspace(0, 65535, 2065).round().astype("<u2").tobytes()
    for vr in ("US", "SS"): add(f"voi_{vr}", twelve, BitsStored=12, **items(VOILUTSequence=dict(LUTDescriptor=(vr, np.array([2065, 736, 16], "<u2").tobytes()), LUTData=("OW", ramp))))
    add("modality", **items(ModalityLUTSequence=dict(LUTDescriptor=("US", np.array([256, 0, 16], "<u2").tobytes()), LUTData=("OW", (np.arange(256)[::-1] * 257).astype("<u2").tobytes()))))
    add("negative_slope", RescaleSlope=-10, RescaleIntercept=3000)
    for name, shape in SHAPES.items(): add(name, **shape)
    add("all_shapes", **{**SHAPES["rectangular"], **SHAPES["circular"], **SHAPES["polygonal"], "ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"]})
    add("collimator", CollimatorShape="RECTANGULAR", CollimatorLeftVerticalEdge=0, CollimatorRightVerticalEdge=65, CollimatorUpperHorizontalEdge=11, CollimatorLowerHorizontalEdge=54)
    add("capture", np.stack([gray(), gray() // 2, gray() // 3], -1), SOPClassUID=CAPTURE, PlanarConfiguration=0); add("enhanced", **enhanced())
    add("not_said", BurnedInAnnotation=None); add("ima", file="scan.IMA"); add("no_extension", file="IM0001"); add("no_preamble", file="old_export", preamble=False)
    add("odd_fields", more=[raw("Exposure", "IS", b"14.5"), raw("FrameTime", "DS", b" 66.7 "), raw("PositionerPrimaryAngle", "DS", b"-"), raw("WindowWidth", "DS", b"1"), raw("ImagerPixelSpacing", "DS", b"0,143\\0,143")])
    add("cut", gray(8, 3)); out["cut"].write_bytes(out["cut"].read_bytes()[:-1000])
    return out


def bad_files(folder):
    "{name: (file, what its problem says)} of everything that must be left out by name."
    f, out = Path(folder), {}
    def add(name, why, *a, file=None, **kw): out[name] = (write(f / (file or f"{name}.dcm"), *a, **kw), why)
    add("burned_in", "burned into its pixels", BurnedInAnnotation="YES"); add("dicomdir", "DICOMDIR", SOPClassUID=DIR, PixelData=None, file="DICOMDIR")
    add("report", "no pixel data", SOPClassUID=SR, Modality="SR", PixelData=None)
    add("icon", "no pixel data", PixelData=None, **items(IconImageSequence=dict(Rows=64, Columns=64, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=gray()[0].tobytes())))
    add("video", "transfer syntax that nothing", syntax=uid.UID("1.2.840.10008.1.2.4.102"), streams=[b"\0" * 100]); add("lying", "JPEG lossless, but they are JPEG baseline", syntax=uid.JPEGLosslessSV1, streams=encode(gray(), uid.JPEGBaseline8Bit))
    add("palette", "PhotometricInterpretation", PhotometricInterpretation="PALETTE COLOR"); add("huge", "pixels in a frame", Rows=65535, Columns=65535, NumberOfFrames=10**6); add("no_rows", "Rows", Rows=None)
    add("empty_pixels", "no whole frame", PixelData=b""); add("broken_stream", "cut off|begins like", syntax=uid.JPEGBaseline8Bit, streams=[encode(gray(), uid.JPEGBaseline8Bit)[0][:300]])
    for name, content, why in (("zero", b"", "0 bytes"), ("text", b"this is no DICOM file", "is not a DICOM file")): (f / f"{name}.dcm").write_bytes(content); out[name] = (f / f"{name}.dcm", why)
    return out
