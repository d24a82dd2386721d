"""The explorer in a real browser: JupyterLab, the notebook a user opens, mouse and keyboard, files from anywhere."""
import csv
import io
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
from playwright.sync_api import expect, sync_playwright

from conftest import train
from explorer_servers import CHROMIUM, QUIET, jupyter_lab, open_lab, run_cells

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine: apt-get install chromium")
SECONDS = 40_000    # ms: a busy machine needs tens of seconds to import torch
PATIENT = "Mustermann^Erika"
KNOWN = ("favicon", "Failed to load resource: the server responded with a status of 404")     # JupyterLab's own


def dicom(frames=1, size=512):
    "Bytes of an uncompressed run with a dark line that moves, and with a patient's name."
    from pydicom.dataset import Dataset, FileMetaDataset
    ds, ds_meta = Dataset(), FileMetaDataset()
    ds_meta.TransferSyntaxUID, ds_meta.MediaStorageSOPClassUID, ds_meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.12.1", "1.2.3.4"
    ds.file_meta, ds.PatientName, ds.PatientID, ds.Modality, ds.SOPInstanceUID = ds_meta, PATIENT, "4711", "XA", "1.2.3.4"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.NumberOfFrames = size, size, 1, "MONOCHROME2", frames
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    pixels = np.full((frames, size, size), 180, np.uint8)
    for i in range(frames): pixels[i, size // 4:-size // 4, 100 + i:106 + i] = 60
    ds.PixelData = pixels.tobytes()
    out = io.BytesIO(); ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def image_bytes(array, kind="PNG"):
    out = io.BytesIO(); Image.fromarray(array).save(out, kind)
    return out.getvalue()


def angiogram(size=300):
    from vasomim.data.phantom import phantom
    return (255 * phantom(7, size=size).image[0].numpy()).astype(np.uint8)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("notebooks")
    with jupyter_lab(root, tmp_path_factory.mktemp("jupyter")) as (address, token): yield address, token, root


@pytest.fixture(scope="module")
def page(lab):
    "The notebook, opened, its kernel ready, all cells run."
    address, token, root = lab
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.set_default_timeout(SECONDS); expect.set_options(timeout=SECONDS)
        page.errors = []
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.on("console", lambda m: m.type == "error" and not any(k in m.text for k in KNOWN) and page.errors.append(m.text))
        open_lab(page, address, token)
        run_cells(page)
        page.wait_for_selector(".mask-ratio .noUi-handle[aria-label]")
        yield page
        browser.close()


@pytest.fixture(autouse=True)
def quiet(page):
    "Back to the start before each test; no error in the page or the console after it, and nothing on the kernel's stderr."
    page.locator("button.explorer-reset").click()
    expect(page.locator(".explorer-message")).to_have_text("")
    expect(page.locator(".explorer-numbers")).to_contain_text("98 of 196")
    yield
    assert page.errors == [] and page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0, page.errors


def picture(page, name):
    return page.locator(f"img.panel-{name}").first.evaluate("async e => { await e.decode(); const b = new Uint8Array(await (await fetch(e.src)).arrayBuffer()); return b.join(',') }")


def share(page): return float(re.search(r"([\d.]+) %\s*of the vessel pixels", page.locator(".explorer-numbers").inner_text())[1])
def shot(page, path): page.locator(".vasomim-explorer").first.scroll_into_view_if_needed(); page.screenshot(path=path)


def upload(page, name, data, kind="application/octet-stream"):
    with page.expect_file_chooser() as chooser: page.locator("button.explorer-upload").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})


def test_slider_by_keyboard_changes_picture_numbers_and_command(page, tmp_path):
    numbers, text = page.locator(".explorer-numbers"), page.locator(".explorer-settings textarea")
    shot(page, tmp_path / "first.png")
    before = {name: picture(page, name) for name in ("image", "mask", "masked")}
    page.locator(".mask-ratio .noUi-handle").focus()
    for _ in range(3): page.keyboard.press("PageUp")
    page.keyboard.press("ArrowRight")
    expect(numbers).to_contain_text("130 of 196")
    expect(text).to_have_value(re.compile(r"-p mask_ratio 0\.66 .*mask_ratio=0\.66,", re.S))
    after = {name: picture(page, name) for name in before}
    assert after["image"] == before["image"] and after["mask"] != before["mask"] and after["masked"] != before["masked"]
    sizes = page.locator("img[class*=panel-]:visible").evaluate_all("e => e.map(i => [i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight])")
    assert len(sizes) == 8 and all(w == h == nw == nh for w, h, nw, nh in sizes), sizes
    shot(page, tmp_path / "moved.png")


def test_drag_and_type(page):
    numbers, bar = page.locator(".explorer-numbers"), page.locator(".mask-ratio .noUi-base")
    bar.scroll_into_view_if_needed()
    box, handle = bar.bounding_box(), page.locator(".mask-ratio .noUi-handle").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2); page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, handle["y"] + 5, steps=8); page.mouse.up()
    expect(numbers).to_contain_text(re.compile(r"\b1[4-8]\d of 196"))
    readout = page.locator(".mask-ratio .widget-readout")
    readout.click(); page.keyboard.press("Control+a"); page.keyboard.type("0.3"); page.keyboard.press("Enter")
    expect(numbers).to_contain_text("59 of 196")
    before = picture(page, "image")
    page.locator(".phantom input").fill("3"); page.locator(".phantom input").press("Enter")
    expect(page.locator(".explorer-settings textarea")).to_have_value(re.compile("phantom=3"))
    assert picture(page, "image") != before
    page.get_by_role("slider", name="LAO/RAO angle, °").focus(); page.keyboard.press("PageUp")
    expect(page.locator(".own-angles input")).not_to_be_checked()
    assert page.get_by_role("slider", name="mask ratio γ").count() == 1 and page.locator("img.panel-mask").get_attribute("alt").startswith("mask: which patches")


def test_presets_and_play_from_weak_to_strong(page, tmp_path):
    preset, text, numbers = page.locator(".preset select"), page.locator(".explorer-settings textarea"), page.locator(".explorer-numbers")
    shown = {}
    for name in ("published", "paper", "v1", "mae", "vasomim"):
        preset.select_option(name)
        expect(text).to_have_value(re.compile(f"-p preset {name} "))
        shown[name] = picture(page, "mask")
    assert len({*shown.values()}) >= 4
    expect(numbers).to_contain_text("32 of 64")       # at the sizes of the preset
    page.locator("button.explorer-reset").click(); expect(numbers).to_contain_text("98 of 196")
    page.locator(".training-progress .noUi-handle").focus(); page.keyboard.press("Home")
    expect(numbers).to_contain_text("0 by guidance"); weak = share(page)
    page.locator(".explorer-play button").first.click()
    expect(page.locator(".training-progress .widget-readout")).to_have_text("1.00"); expect(numbers).to_contain_text("49 by guidance")
    assert share(page) > weak + 10, (share(page), weak)
    shot(page, tmp_path / "played.png")


def test_pasted_settings_agree_from_the_first_time(page, tmp_path):
    text, message = page.locator(".explorer-settings textarea"), page.locator(".explorer-message")
    for _ in range(2):
        text.fill("eta=0.333, percentile=92.25, progress=0.7000001, gamma=0.55")
        page.locator("button.explorer-load").click()
        expect(message).to_contain_text("progress moved from 0.7000001 to 0.7")
        for name, value in {"eta": "0.333", "percentile": "92.25", "training-progress": "0.70", "mask-ratio": "0.55"}.items():
            expect(page.locator(f".{name} .widget-readout")).to_have_text(value)
        shown = text.input_value()
        assert all(part in shown for part in ("-p eta 0.333 ", "-p percentile 92.25 ", "-p mask_ratio 0.55 ", "progress=0.7,")), shown
        page.locator("button.explorer-load").click()
        expect(message).to_have_text("")
        assert text.input_value() == shown
    shot(page, tmp_path / "pasted.png")
    page.locator("button.explorer-reset").click()        # to coarser steps: the browser must not send a rounded value after it
    expect(page.locator(".eta .widget-readout")).to_have_text("0.50"); expect(page.locator(".percentile .widget-readout")).to_have_text("92.0")
    page.locator("button.explorer-redraw").click(); expect(text).to_have_value(re.compile("draw=1"))
    assert "-p eta 0.5 " in text.input_value() and "-p percentile 92.0 " in text.input_value()


def test_uploads_are_shown_without_any_name(page, tmp_path):
    caption, message, frame = page.locator(".vasomim-explorer"), page.locator(".explorer-message"), page.locator(".frame")
    before = picture(page, "image")
    upload(page, "Mustermann.png", image_bytes(angiogram()), "image/png")
    expect(caption).to_contain_text("uploaded file"); expect(caption).to_contain_text("from 300 × 300 px")
    assert picture(page, "image") != before and not frame.is_visible()
    upload(page, "Mustermann.dcm", dicom(9, 256))
    expect(caption).to_contain_text("frame 1 of 9"); expect(frame).to_be_visible()
    first = picture(page, "image")
    frame.locator(".noUi-handle").focus(); page.keyboard.press("End")
    expect(caption).to_contain_text("frame 9 of 9")
    assert picture(page, "image") != first
    whole = page.content()
    assert PATIENT not in whole and "Mustermann" not in whole and "4711" not in whole
    shot(page, tmp_path / "dicom.png")
    page.locator("button.explorer-remove").click()
    expect(caption).to_contain_text("phantom 0"); assert picture(page, "image") == before
    page.evaluate("""data => { const files = new DataTransfer(); files.items.add(new File([new Uint8Array(data)], "dropped.tif"));
        document.querySelector("img.panel-image").dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: files})); }""", list(image_bytes(angiogram(200), "TIFF")))
    expect(caption).to_contain_text("from 200 × 200 px")
    expect(message).to_have_text("")


def test_bad_uploads_leave_a_line_and_the_explorer_goes_on(page, tmp_path):
    message, note, numbers = page.locator(".explorer-message"), page.locator(".explorer-upload-note"), page.locator(".explorer-numbers")
    for name, data, line in [("text.png", b"hello, I am no picture", "is not a PNG, JPEG"), ("huge.png", image_bytes(np.zeros((10_000, 10_000), bool)), "10000 x 10000 pixels, more than the limit"),
                             ("broken.dcm", dicom()[:-100_000], "cut off")]:
        upload(page, name, data)
        expect(message).to_contain_text(line)
        assert name not in message.inner_text() and "phantom 0" in page.locator(".vasomim-explorer").inner_text()
    shot(page, tmp_path / "bad.png")
    for name, data in (("run.dcm", dicom(45)), ("large.tif", image_bytes(np.random.default_rng(0).integers(0, 255, (4500, 4500), np.uint8), "TIFF"))):      # W1: Jupyter itself takes 10 MB
        assert len(data) > 11e6
        upload(page, name, data)
        expect(note).to_contain_text(f"This file has {len(data) / 1e6:.1f} MB; this server takes 10 MB in one upload. Type its folder above instead")
    page.locator(".mask-ratio .noUi-handle").focus(); page.keyboard.press("ArrowRight")
    expect(numbers).to_contain_text("100 of 196"); expect(message).to_have_text("")
    page.locator("button.explorer-reset").click(); expect(note).not_to_contain_text("This file has")


def test_folders_dicom_and_packed_sets_can_be_typed(page, lab, packed):
    folder, text = page.locator(".data-dir input"), page.locator(".explorer-settings textarea")
    files = lab[2] / "files"; files.mkdir(exist_ok=True)
    (files / "Mustermann.dcm").write_bytes(dicom(45)); (files / "b.png").write_bytes(image_bytes(angiogram()))
    folder.fill("files"); folder.press("Enter")
    expect(page.locator(".image select option")).to_have_count(2)
    names = [n.replace("\xa0", " ") for n in page.locator(".image select option").all_inner_texts()]
    assert "b.png" in names and any(re.fullmatch("dicom [0-9a-f]{10}", n) for n in names), names
    page.locator(".image select").select_option(next(n for n in names if n.startswith("dicom")))
    expect(page.locator(".vasomim-explorer")).to_contain_text("frame 1 of 45")
    folder.fill(str(packed)); folder.press("Enter")
    expect(page.locator(".row input")).to_be_visible(); expect(page.locator(".vasomim-explorer")).to_contain_text("row 0 of 18")
    page.locator(".row input").fill("5"); page.locator(".row input").press("Enter")
    expect(page.locator(".vasomim-explorer")).to_contain_text("row 5 of 18"); expect(text).to_have_value(re.compile("row=5"))
    folder.fill(""); folder.press("Enter")
    expect(page.locator(".phantom")).to_be_visible()


def test_angiograms_of_the_sample_sets_or_phantoms(page, tmp_path):
    "Every kind of folder is opened by its name alone; vessels are found, and some of them hidden."
    from vasomim.core import shared_dir
    found = [d for n in ("dca1", "xcad", "arcade", "danilov", "angiodata", "xa-dicom") if (d := shared_dir("data", n))]
    if not found: (tmp_path / "phantoms").mkdir(); (tmp_path / "phantoms" / "a.png").write_bytes(image_bytes(angiogram(512))); found = [tmp_path / "phantoms"]
    before, hidden = picture(page, "image"), re.compile(r"\b[1-9][\d.]* %\s*of the vessel pixels")
    for directory in (f.resolve() for f in found):
        page.locator(".data-dir input").fill(str(directory)); page.locator(".data-dir input").press("Enter")
        expect(page.locator(".explorer-settings textarea")).to_have_value(re.compile(re.escape(f"data_dir='{directory}'")))
        expect(page.locator(".explorer-numbers")).to_contain_text(hidden); expect(page.locator(".explorer-message")).to_have_text("")
        assert picture(page, "image") != before; before = picture(page, "image")
        shot(page, tmp_path / f"{directory.name}.png")


def test_compare_and_export(page, lab, tmp_path):
    heat = page.locator("img.explorer-heat")
    page.locator(".explorer-compare input").check()
    expect(heat).to_have_count(4)
    first = heat.last.get_attribute("src")
    page.locator(".compare-block input").check(); expect(heat).to_have_count(5)
    page.locator(".compare-colours select").select_option("red-blue, as in Fig. 2")
    expect(heat.last).not_to_have_attribute("src", first)
    shot(page, tmp_path / "compared.png")
    page.locator("button.explorer-export").click()
    links = page.locator(".explorer-links a[download]"); expect(links).to_have_count(3)
    got = {}
    for i in range(3):
        with page.expect_download() as download: links.nth(i).click()
        got[download.value.suggested_filename] = open(download.value.path(), "rb").read()
    assert {n: (lab[2] / "exports" / n).read_bytes() for n in got} == got and got["explorer-comparison.svg"][:5] == b"<?xml"
    assert Image.open(io.BytesIO(got["explorer-comparison.png"])).width == 2148        # 7.16 inches at 300 dots each
    rows = [*csv.DictReader(io.StringIO(got["explorer-comparison.csv"].decode()))]
    mean = lambda name: np.mean([float(r["masked"]) for r in rows if r["sampler"] == name and r["holds_vessel"] == "1"])
    assert len(rows) == 5 * 196 and mean("guided") > mean("random") + 0.05
    page.locator(".explorer-compare input").uncheck(); expect(heat.first).not_to_be_visible()


def test_a_run_reconstructs_and_drives(page, tmp_path_factory):
    run = train(tmp_path_factory.mktemp("run") / "run", phantoms=8, epochs=2, cache_dir=str(tmp_path_factory.mktemp("cache")))
    field, images = page.locator(".run input"), page.locator("img[class*=panel-]:visible")
    field.fill(str(run)); field.press("Enter")
    expect(images).to_have_count(12); expect(page.locator(".explorer-numbers")).to_contain_text("of 9")
    before = picture(page, "reconstruction")
    page.locator("button.explorer-redraw").click(); expect(page.locator(".explorer-settings textarea")).to_have_value(re.compile("draw=1"))
    assert picture(page, "reconstruction") != before
    page.locator(".masking select").select_option("attention"); expect(page.locator(".explorer-numbers")).to_contain_text("drawn by the network's attention")
    page.locator(".masking select").select_option("loss"); expect(page.locator(".explorer-message")).to_contain_text("driven by f(g) here")
    field.fill(""); field.press("Enter"); expect(images).to_have_count(8)


def test_errors_are_shown_in_the_page(page, tmp_path):
    folder = page.locator(".data-dir input")
    folder.fill("/no/such/folder"); folder.press("Enter")
    expect(page.locator(".explorer-message")).to_contain_text("/no/such/folder: no such folder")
    shot(page, tmp_path / "error.png")
    folder.fill(""); folder.press("Enter")
    expect(page.locator(".explorer-message")).to_have_text("")


def test_narrow_and_dark(page, tmp_path):
    "Nothing is cut off in a narrow window, and text stays readable in the dark theme."
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.set_viewport_size({"width": 640, "height": 1000})
    try:
        shot(page, tmp_path / "dark.png")
        wide = page.locator(".vasomim-explorer img[class*=panel-]:visible").evaluate_all("e => Math.max(...e.map(i => i.getBoundingClientRect().right))")
        assert wide <= 640
        edge = page.locator(".jp-NotebookPanel:visible").first.evaluate("e => e.getBoundingClientRect().right")
        assert page.locator(".vasomim-explorer select:visible, .vasomim-explorer input:visible, .vasomim-explorer .widget-readout:visible").evaluate_all("e => Math.max(...e.map(i => i.getBoundingClientRect().right))") <= edge
    finally:
        page.set_viewport_size({"width": 1400, "height": 1100})
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
