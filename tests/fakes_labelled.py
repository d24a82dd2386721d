"""Small copies of the labelled data sets, made of phantoms, with everything odd that real copies have been seen to hold."""
import json

import numpy as np
import torch
from PIL import Image
from skimage.measure import find_contours

from vasomim.data.coronary import SEGMENT_NAMES
from vasomim.data.images import save_image
from vasomim.data.phantom import phantom

SIZE = 96
TWIN = b"\0\5\x16\7" + bytes(4092)          # `._name`: what an archive from a Mac adds beside every file
SEGMENT_IDS = {name: i for i, name in SEGMENT_NAMES.items()}
CATEGORIES = [{"id": i, "name": name, "supercategory": ""} for name, i in {**SEGMENT_IDS, "stenosis": 26}.items()]


def person(i): return phantom(i, size=SIZE, stenoses=2)


def put(path, picture):
    "An image file, with the folders above it."
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, picture)
    return path


def write(path, data):
    "A file of bytes or text, with the folders above it."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def bmp24(path, image):
    "A gray picture with 24 bits, as Danilov's are."
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = (image[0].numpy() * 255).round().astype(np.uint8)
    Image.fromarray(np.stack([gray] * 3, -1)).save(path, format="BMP")


# ---------------------------------------------------------------------------------------------------------------- ARCADE
def outlines(mask):
    "Outlines of a mask in COCO's notation: flat x, y, a pixel being the unit square."
    return [np.round(c[:, ::-1] - 0.5, 2).ravel().tolist() for c in find_contours(np.pad(np.asarray(mask), 1).astype(float), 0.5)]


def coco_image(i, name, h=SIZE, w=SIZE): return {"id": i, "file_name": name, "height": h, "width": w, "license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}


def annotation(i, image, category, segmentation):
    return {"id": i, "image_id": image, "category_id": category, "segmentation": segmentation, "area": 0.0, "bbox": [0, 0, 1, 1], "iscrowd": 0, "attributes": {"occluded": False}}


def segment_annotations(image, p): return [annotation(7, image, int(c), outlines(p.segments == c)) for c in p.segments.unique() if c]


def lesion_annotations(image, p): return [annotation(279, image, 26, outlines(s.mask[0])) for s in p.stenoses]


def split(folder, file_name, images, annotations, people, categories=CATEGORIES, rgb=False):
    "One split: `people` is file name -> phantom."
    for name, p in people.items():
        put(folder/"images"/name, p.image)
        if rgb: Image.open(folder/"images"/name).convert("RGB").save(folder/"images"/name)
    write(folder/"annotations"/file_name, json.dumps({"licenses": [], "info": {}, "categories": categories, "images": images, "annotations": annotations}))


def arcade(root, old=False):
    """Both parts of ARCADE, in the new tree or the challenge's. `1.png` in every split; gaps in the ids; all annotations have the same id. In syntax/train: an annotation with two outlines (image 1),
    a self-crossing one (2), one of 4 numbers and one with a corner outside (3), run lengths (10); an annotation of an image that is not listed; a listed image that is not there; a file that is not listed;
    an image without annotation (4); one stated at half its size (5), one for another shape (6); syntax/val is 0-based with correct names; syntax/test is called test.JSON, with BOM, CRLF, folders in names."""
    new = {(t, s): f"{t}/{s}" for t in ("syntax", "stenosis") for s in ("train", "val", "test")}
    challenge = {("syntax", "train"): "dataset_phase_1/segmentation_dataset/seg_train", ("syntax", "val"): "dataset_phase_1/segmentation_dataset/seg_val", ("syntax", "test"): "dataset_final_phase/test_case_segmentation",
                 ("stenosis", "train"): "dataset_phase_1/stenosis_dataset/sten_train", ("stenosis", "val"): "dataset_phase_1/stenosis_dataset/sten_val", ("stenosis", "test"): "dataset_final_phase/test_cases_stenosis"}
    where = {k: root/v for k, v in (challenge if old else new).items()}
    a, b, c = (person(i) for i in range(3))

    people = {f"{i}.png": a for i in (1, 2, 3, 4, 5, 6, 10, 99)}
    listed = [coco_image(i, f"{i}.png") for i in (1, 2, 3, 4, 10, 77)] + [coco_image(5, "5.png", SIZE // 2, SIZE // 2), coco_image(6, "6.png", SIZE, SIZE // 2)]
    star = np.array([(48 + 40 * np.sin(t), 48 - 40 * np.cos(t)) for t in np.arange(5) * 4 * np.pi / 5]).round(2).ravel().tolist()
    runs = {"size": [SIZE, SIZE], "counts": [SIZE * 10, SIZE * 5, SIZE * (SIZE - 15)]}
    odd = [annotation(7, 1, 24, [[0, 0, 10, 0, 10, 10, 0, 10], [20, 20, 30, 20, 30, 30, 20, 30]]), annotation(7, 2, 25, [star]), annotation(7, 3, 5, [[1, 1, 9, 9]]),
           annotation(7, 3, 6, [[-40, -40, 20, -40, 20, 20, -40, 20]]), annotation(7, 10, 1, runs), annotation(7, 5, 2, [[0, 0, 10, 0, 10, 10, 0, 10]]), annotation(7, 6, 2, [[0, 0, 10, 0, 10, 10, 0, 10]]),
           annotation(7, 1000, 5, [[0, 0, 9, 0, 9, 9]]), annotation(7, 77, 5, [[0, 0, 9, 0, 9, 9]]), annotation(7, 1, 26, [[50, 50, 60, 50, 60, 60, 50, 60]])]
    split(where["syntax", "train"], "train.json", listed, odd, people)
    shifted = [{**k, "id": k["id"] - 1} for k in CATEGORIES]
    split(where["syntax", "val"], "val.json", [coco_image(1, "1.png")], [{**x, "category_id": x["category_id"] - 1} for x in segment_annotations(1, b)], {"1.png": b}, shifted)
    split(where["syntax", "test"], "test.JSON", [coco_image(3, "images\\1.png"), coco_image(8, "images/2.png")], segment_annotations(3, b) + segment_annotations(8, c), {"1.png": b, "2.png": c})
    file = where["syntax", "test"]/"annotations"/"test.JSON"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(json.loads(file.read_text(encoding="utf-8")), indent=1).replace("\n", "\r\n").encode())
    for s in ("train", "val", "test"):
        split(where["stenosis", s], "instances_default.json" if old else f"{s}.json", [coco_image(i, f"{i}.png") for i in (1, 2)], lesion_annotations(1, a), {"1.png": a, "2.png": b}, rgb=True)
    for part in where.values(): write(part/"images"/"._1.png", TWIN); write(part/"images"/"Thumbs.db", b"x"); write(part/"annotations"/"._train.json", TWIN)
    return root


# ---------------------------------------------------------------------------------------------------------------- pairs
def paired(root):
    "Label 0/1 (train/2) and 0/255, a label of another extension (train/11), another size (test/3), missing (test/4), without image (test/77)."
    for s, name in (("train", "2.png"), ("train", "10.png"), ("train", "11.jpg"), ("test", "2.png"), ("test", "3.png"), ("test", "4.png")):
        p = person(int(name.split(".")[0]))
        put(root/s/"img"/name, p.image)
        if name != "4.png": put(root/s/"label"/name.replace("jpg", "png"), p.vessels.float() / 255 if (s, name) == ("train", "2.png") else p.vessels)
    put(root/"test/label/3.png", torch.eye(40) > 0); put(root/"test/label/77.png", person(2).vessels); write(root/"test/img/._2.png", TWIN)
    return root


def xcav(root):
    "RAO and LAO, CRA and CAU; frames with and without mask; CATH with 0/127/255, and CATH images; a mask without frame, of another size, of a run without frames; patients without mask."
    for patient, run, n in (("CVAI-1207", "CVAI-1207LAO44_CRA29", 3), ("CVAI-1253", "CVAI-1253LAO0_CAU29", 3), ("CVAI-2828", "CVAI-2828RAO2_CRA32", 2), ("CVAI-2855", "CVAI-2855LAO26_CRA31", 2)):
        for f in range(n): put(root/patient/"images"/run/f"{f:05d}.png", person(f).image)
    truth, p = root/"CVAI-1207/ground_truth", person(1)
    put(truth/"CVAI-1207LAO44_CRA29/00001.png", p.vessels)
    put(truth/"CVAI-1207LAO44_CRA29CATH/00001.png", (p.catheter & ~p.vessels).float() * 127 / 255 + p.vessels.float())
    put(root/"CVAI-1207/images/CVAI-1207LAO44_CRA29CATH/00001.png", p.image)
    put(root/"CVAI-1253/ground_truth/CVAI-1253LAO0_CAU29/00000.png", torch.eye(40) > 0); put(root/"CVAI-1253/ground_truth/CVAI-1253LAO0_CAU29/00099.png", p.vessels)
    put(root/"CVAI-2828/ground_truth/CVAI-2828RAO2_CRA99/00000.png", p.vessels)
    write(root/"CVAI-1207/images/CVAI-1207LAO44_CRA29/._00000.png", TWIN)
    return root


def dca1(root, early=False):
    "P2 with comment and P5; 2 before 10; maxima 15, 4095 and 1; values between in mask 44; a prefix; pairs that are missing, of another size, with maximum 0. Or the early release as PNG."
    root.mkdir(parents=True, exist_ok=True)
    if early:
        for s, i in (("train", 1), ("train", 2), ("train", 10), ("test", 1)): put(root/s/f"{i}.png", person(i).image); put(root/s/f"{i}_gt.png", person(i).vessels)
        return root
    def p2(name, picture, high=255):
        a = (np.asarray(picture[0], float) * high).round().astype(int)
        write(root/name, f"P2\n# 1 of 134 Angiograms\n{a.shape[1]} {a.shape[0]}\n{high}\n" + "\n".join(" ".join(map(str, row)) for row in a) + "\n")
    for i in (2, 10, 44, 101): p2(f"{i}.pgm", person(i).image); p2(f"{i}_gt.pgm", person(i).vessels.float())
    p2("2.pgm", person(2).image, 15); p2("2_gt.pgm", person(2).vessels.float(), 1)
    write(root/"10.pgm", b"P5\n# 10\n%d %d\n4095\n" % (SIZE, SIZE) + (person(10).image[0].numpy() * 4095).round().astype(">u2").tobytes())
    soft = person(44).vessels.float(); soft[0, :4] = torch.tensor([1., 66, 227, 252])[:, None] / 255; p2("44_gt.pgm", soft)
    put(root/"DB134_107.pgm", person(7).image); put(root/"DB134_107_gt.pgm", person(7).vessels)
    p2("5.pgm", person(5).image); p2("6_gt.pgm", person(6).vessels.float()); p2("9.pgm", person(9).image); p2("9_gt.pgm", person(9).vessels.float()[:, :50])
    write(root/"8.pgm", "P2\n2 1\n0\n0 0\n"); p2("8_gt.pgm", person(8).vessels.float()); write(root/"._2.pgm", TWIN)
    return root


# ---------------------------------------------------------------------------------------------------------------- boxes
def voc(*boxes, head="", size=(SIZE, SIZE), name="Stenosis"):
    "A Pascal VOC file as LabelImg writes it on somebody's Windows machine."
    def corners(box): return "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return (f"{head}<annotation>\n\t<folder>data</folder>\n  <filename>elsewhere.bmp</filename>\n<path>D:\\LabelImg\\data\\elsewhere.bmp</path><source><database>Unknown</database></source>"
            f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>1</depth></size><segmented>0</segmented>"
            + "".join(f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>{corners(b)}</bndbox></object>" for b in boxes) + "</annotation>\n")


BOMB = '<!DOCTYPE x [<!ENTITY a "' + "x" * 1000 + '">' + "".join(f'<!ENTITY {b} "{f"&{a};" * 100}">' for a, b in ("ab", "bc", "cd", "de")) + "]>"


def stenosis(root, tables=True):
    "`dataset` in a folder with a blank; .bmp and .BMP; two sizes; run 29, a gap of frames; two objects; floats, 0 and the edge; a pixel outside; halved; no xml; no image; an entity bomb; CSV files."
    data, image = root/"Stenosis detection"/"dataset", person(1).image
    big = phantom(5, size=128).image
    for stem, suffix, picture, text in (("14_001_5_0016", "bmp", image, voc((10, 20, 30, 40))), ("14_001_5_0017", "BMP", image, voc((0, "28.700000762939453", SIZE, 40), (50, 60, SIZE + 1, 70))),
                                        ("14_001_29_0004", "bmp", image, voc((1, 2, 3, 4))), ("14_002_1_0001", "bmp", big, voc((10, 20, 30, 40), size=(128, 128))), ("14_002_1_0005", "bmp", big, voc((20, 40, 60, 80), size=(256, 256))),
                                        ("14_003_2_0007", "bmp", image, None), ("14_003_2_0009", "bmp", image, voc(("&e;", 1, 2, 3), head=BOMB)), ("14_004_1_0001", "bmp", image, voc((5, 6, 7, 8)))):
        bmp24(data/f"{stem}.{suffix}", picture)
        if text: write(data/f"{stem}.xml", text)
    write(data/"14_055_1_0001.xml", voc((1, 2, 3, 4))); write(data/"._14_001_5_0016.bmp", TWIN)
    if tables: write(data.parent/"train_labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\r\n14_001_5_0016.bmp,96,96,Stenosis,10,21,30,40\r\n14_004_1_0001.bmp,96,96,Stenosis,5,6,70,8\r\n14_077_1_0001.bmp,96,96,Stenosis,1,2,3,4\r\n")
    return root


# ---------------------------------------------------------------------------------------------------------------- any folder
def generic(root):
    "Names with blanks and accents, .PNG, an empty file, half a PNG, text called .png, 16 bits, a palette, alpha, deep folders, a loop of links, masks beside images by suffix and by folder."
    p = person(3)
    put(root/"Jürgen Müller"/"Lauf 1"/"bild 1.PNG", p.image); put(root/"deep/er/and/deeper/2.png", p.image)
    write(root/"zero.png", b""); write(root/"text.png", "not an image"); whole = put(root/"a.png", p.image).read_bytes(); write(root/"half.png", whole[:len(whole) // 2])
    save_image(root/"sixteen.png", p.image, bits=16); Image.open(root/"a.png").convert("P").save(root/"palette.png"); Image.open(root/"a.png").convert("RGBA").save(root/"alpha.png")
    put(root/"a_gt.png", p.vessels); put(root/"case/images/k/1.jpg", p.image); put(root/"case/masks/k/1.png", p.vessels); write(root/"._a.png", TWIN); write(root/"__MACOSX/a.png", TWIN)
    (root/"deep/er/back").symlink_to(root, target_is_directory=True)
    return root


def turned(root):
    "A JPEG of 512 x 384 whose EXIF data says \"turn me\", its left 100 columns bright, with mask and box of the same region; five 16-bit pictures that use 12 bits."
    photo, exif = np.zeros((384, 512), np.uint8), Image.Exif()
    photo[:, :100], exif[0x0112] = 255, 6
    root.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(root/"turned.jpg", exif=exif, quality=95); Image.fromarray(photo).save(root/"turned_mask.png")
    write(root/"turned.xml", voc((0, 0, 100, 384), size=(384, 512)))
    ramp = np.tile(np.linspace(0, 4095, 64).round().astype(np.uint16), (64, 1))
    for i in range(5): Image.fromarray(ramp).save(root/f"ramp{i}.png")
    return root
