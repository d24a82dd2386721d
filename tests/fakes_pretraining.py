"""Small copies of the pre-training data sets in their published layouts, filled with phantoms; each file drives one branch of a reader."""
import functools
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from vasomim.data.images import save_image
from vasomim.data.phantom import phantom

SIZE = 64
picture = functools.lru_cache(functools.partial(phantom, size=SIZE))


def write(file: Path, content):
    "A file with its folders: bytes, text, or a (1, H, W) image or mask."
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes): file.write_bytes(content)
    elif isinstance(content, str): file.write_bytes(content.encode())
    else: save_image(file, content)


def debris(folder: Path, twin="1.png"):
    "What macOS and Windows leave in a folder."
    for name in (".DS_Store", "Thumbs.db", f"._{twin}"): write(folder/name, b"\0\5\26\7" + bytes(60))


def xa170k(folder: Path) -> Path:
    "Masks under both published names, one missing and one of another size; an empty part; names that say nothing."
    root = folder/"dataset"
    for i, study in enumerate((10, 2, 2)):
        write(root/f"coronarydominance/Study{study:05d}_{'LRL'[i]}CA_sequence3_slice{12 - i}.png", picture(i).image)
    write(root/"coronarydominance/Study00001_LCA_sequence3_slice12.png", picture(3).image)
    for i, name in enumerate(("p10_v2_00015.png", "p2_v2_00015.png", "p1_v2_00015.png", "picture 7.png")):
        write(root/"cadica"/name, picture(i).image)
        if i < 3: write(root/"cadica_frangi"/name, picture(i).vessels[:, :SIZE//2] if i == 1 else picture(i).vessels)
    for i, name in enumerate(("000_PPA_44_PSA_00_8.png", "003_PPA_-29_PSA_29_2.png")):
        write(root/"xcad"/name, picture(i).image); write(root/"xcad_filter_92"/name, picture(i).vessels)
    write(root/"xcad_filter_92/nobody.png", picture(0).vessels)
    (root/"syntax").mkdir()
    for part in ("cadica", "cadica_frangi", "coronarydominance"): debris(root/part)
    write(folder/"__MACOSX/dataset/cadica/._1.png", b"\0")
    return root


def cadica(folder: Path, projections="selectedVideos") -> Path:
    "The doubled folder; lesion, free, unlisted and doubly listed videos; every kind of annotation file. `projections`: where the JSON lies."
    root = folder/"CADICA"/"CADICA"

    def video(part, patient, v, frames, key):
        for k in frames: write(root/part/patient/v/"input"/f"{patient}_{v}_{k:05d}.png", picture(k % 4).image)
        if key is not None: write(root/part/patient/v/f"{patient}_{v}_selectedFrames.txt", key)

    video("selectedVideos", "p10", "v2", range(3, 9), "\r\n".join(f"p10_v2_{k:05d}" for k in (3, 4, 5, 6, 7, 99)) + "\r\n\r\n")   # 99 is not there
    video("selectedVideos", "p1", "v10", range(2), "0\n1\n")                                                                     # bare numbers
    video("selectedVideos", "p1", "v2", range(2), "\ufeffp1_v2_00001.png\np1_v2_00001\n")                                         # BOM, extension, twice
    video("selectedVideos", "p1", "v3", range(1), "p1_v3_00000")
    video("selectedVideos", "p1", "v4", range(1), None)                                                                          # no list of key frames
    video("nonselectedVideos", "p1", "v1", range(2), None)
    write(root/"selectedVideos/p10/lesionVideos.txt", "p10_v2\r\n\r\n")
    write(root/"selectedVideos/p1/nonLesionVideos.txt", "v10\r\nv3\r\n")
    write(root/"selectedVideos/p1/lesionVideos.txt", "v3\n")                                                                     # v3 in both, v2 and v4 in none
    for k, text in ((3, "10 11 20 21 p70_90\n1 2 3 4 p0_20\n"), (4, ""), (5, "1 2 3 4 p0_20\n1 2 3 4 lesion\n"), (6, "1 2 3 p0_20\n"), (77, "1 2 3 4 p99\n")):
        write(root/f"selectedVideos/p10/v2/groundtruth/p10_v2_{k:05d}.txt", text)
    write(root/"selectedVideos/p10/v2/groundtruth/p10_v2_groundTruthTable.mat", b"MATLAB")
    (root/"selectedVideos/p1/v10/groundtruth").mkdir()
    write(root/"selectedVideos/p1/v10/input/cover.png", picture(0).image)                                                        # not a frame
    write(root/projections/"CADICAprojections.json", json.dumps({"videosLCA": ["p10_v2"], "videosLCA2": ["p1_v10"], "videosRCA": ["p1_v2", "p42_v1"]}))
    write(root/"metadata.xlsx", b"PK health data"); write(root/"readme.txt", "CADICA")
    debris(root/"selectedVideos/p1/v2/input"); write(folder/"CADICA/__MACOSX/._CADICA", b"\0")
    return root


def syntax(folder: Path) -> Path:
    "Patients as folders in several spellings and as numbers of files, extensions of both cases, the same stem twice, a colour JPEG, a table, DICOM."
    root = folder/"SYNTAX"
    for i, name in enumerate(("Patient 1/1.JPG", "patient_02/a/b/1.jpeg", "Patient 10/1.png", "loose/12_a.png", "loose/12_b.png", "loose/nobody.png")): write(root/name, picture(i % 4).image)
    Image.open(root/"Patient 1/1.JPG").convert("RGB").save(root/"Patient 1/1.JPG", quality=95)
    write(root/"scores.xlsx", b"PK"); write(root/"Patient 1/run.DCM", b"DICM"); debris(root/"Patient 1")
    return root


XCAD_LAYOUTS = {"published": ("train/trainB", "test/images", "test/masks"), "ssvs": ("trainB", "testB", "testA"), "freecos": ("train/img", "test/img", "test/gt")}


def xcad(folder: Path, layout="published") -> Path:
    "Twins without contrast agent, drawings, a number that occurs twice; one test mask missing."
    root, (train, test, masks) = folder/"XCAD", XCAD_LAYOUTS[layout]
    names = "000_PPA_44_PSA_00_8.png", "003_PPA_-29_PSA_29_2.png", "064_PPA_-5_PSA_-34_1.png", "064_PPA_48_PSA_42_5.png", "1012_PPA_00_PSA_00_3.png"
    for i, name in enumerate(names):
        write(root/train/name, picture(i % 4).image)
        if layout != "freecos": write(root/train.replace("trainB", "trainC")/name, picture(0).image)
    if layout != "freecos": write(root/train.replace("trainB", "trainA")/"00000.png", picture(0).image)
    for i, name in enumerate(("00018_33.png", "00087_33.png", "00214_29.png")):
        write(root/test/name, picture(i).image)
        if i < 2: write(root/masks/name, picture(i).vessels)
    debris(root/train); debris(root/test)
    return root


def stored_object(x) -> np.ndarray:
    "An array that can only be loaded by unpickling."
    a = np.empty((), object)
    a[()] = x
    return a


class Bomb:
    "Makes a folder when it is unpickled."
    def __init__(self, folder): self.folder = str(folder)
    def __reduce__(self): return os.mkdir, (self.folder,)


def npy_header(shape, descr="<f8") -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})
    return stream.getvalue()


def coronary_dominance(folder: Path) -> Path:
    "Three frames, one frame, a re-packed series, unknown facts as objects; and six files that must be refused, two of which would run a program."
    root = folder/"CoronaryDominance"
    run = np.stack([(picture(i).image[0].numpy()*255).round() for i in range(3)]).astype(float)

    def put(path, **arrays):
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(root/path, **arrays)

    bomb, one, two = stored_object(Bomb(folder/"exploded")), "main_normal/Left_Dominance/Study00001_1.1.11.2", "main_others/bad quality/Right Dominance/Study00010_1.1.11.9"
    put(f"{one}/LCA/1.1.11.3.4.npz", pixel_array=run, primary_positioner_angle=np.array(-29.5), secondary_positioner_angle=stored_object(None), is_occlusion=stored_object(None),
        **{"series number": np.array(7), "seriesid": np.array("1.1.11.3.4")})
    put(f"{one}/LCA/1.1.11.3.10.npz", pixel_array=run[1], artery_type=bomb, primary_positioner_angle=bomb, series_number=np.array(3))                    # no RCA in this study
    put(f"{two}/RCA/1.npz", frames=run.astype(np.uint8), primary_angle=np.array([30]), secondary_angle=np.array(np.nan))
    put(f"{two}/LCA/1.npz", pixel_array=bomb); put(f"{two}/LCA/2.npz", other=run); put(f"{two}/LCA/3.npz", pixel_array=run[None])
    put(f"{two}/LCA/4.npz", pixel_array=run); whole = (root/two/"LCA/4.npz").read_bytes(); (root/two/"LCA/4.npz").write_bytes(whole[:len(whole)//2])
    for name, content in (("5", npy_header((10**6, 512, 512))), ("6", b"\x93NUMPY\x09\x00"), ("7", b"")):
        with zipfile.ZipFile(root/two/f"LCA/{name}.npz", "w") as z: z.writestr("pixel_array.npy", content)
    with zipfile.ZipFile(root/two/"LCA/8.npz", "w") as z: z.writestr("pixel_array.npy", npy_header((2, 8, 8)) + bytes(100))                             # too short; shows when it is loaded
    debris(root/two/"LCA"); write(root/"main_normal.7z", b"7z")
    return root


def angiodata(folder: Path) -> Path:
    "A copied frame, a frame that only looks like a copy, the DICOM file and the table beside them."
    root = folder/"all_dataSet_50_videos"
    for where in ("Patient_10/Coro_1", "Patient_2/Coro_10", "Patient_2/Coro_2"):
        for k in range(9, 12): write(root/where/f"frame_{k:05d}.jpg", picture(k % 4).image)
        write(root/where/f"{where.replace('/', '_')}.IMA", b"git-lfs")
    write(root/"Patient_2/Coro_2/frame_00011 (1).jpg", (root/"Patient_2/Coro_2/frame_00011.jpg").read_bytes())
    write(root/"Patient_2/Coro_2/frame_00010 (1).jpg", picture(3).image)
    write(root/"metadata.csv", "PatientName"); debris(root/"Patient_2/Coro_2")
    return root


FAKES = {"xa170k": xa170k, "cadica": cadica, "syntax": syntax, "xcad": xcad, "coronary-dominance": coronary_dominance, "angiodata": angiodata}
