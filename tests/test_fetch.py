"""Downloads from a server that misbehaves, and archives that try to do harm."""
import errno
import hashlib
import http.server
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from conftest import environment
from vasomim.core import InputError
from vasomim.data import fetch as fetching
from vasomim.data import unpack as unpacking
from vasomim.data.fetch import Resume, fetch, list_datasets
from vasomim.data.images import list_images
from vasomim.data.sources.catalog import Dataset, Download, find_dataset, open_source
from vasomim.data.unpack import finished, unpack

py7zr = pytest.importorskip("py7zr")
pytest.importorskip("pooch")
NOISE = os.urandom(3_000_000)
PIECE = 1 << 16      # at most this much is lost when a line breaks
SLEEP = time.sleep
PATHS = os.pathsep.join([str(Path(__file__).parent), environment()["PYTHONPATH"]])      # for programs that use this file


class Publisher(http.server.ThreadingHTTPServer):
    "A server on this machine; `files` says what it has and how it misbehaves, `log` what it was asked and how much it sent."
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.log, self.url = {}, [], f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def add(self, path, data=b"", **how): self.files[path] = dict(data=data, cuts=[], ranges=True, etag='"1"', status=[], headers={}, slow=0) | how; return self.url + path
    def gets(self, path): return [x for x in self.log if x["path"] == path and x["method"] == "GET"]


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        file, note = self.server.files.get(path), {"path": path, "method": self.command, "range": self.headers.get("Range"), "if-range": self.headers.get("If-Range"), "sent": 0}
        self.server.log.append(note)
        if file is None: return self.send_error(404)
        if file["status"] and (code := file["status"].pop(0)) != 200: return self.finish_with(code, file["headers"])
        data, start = file["data"], 0
        if note["range"] and file["ranges"] and note["if-range"] in (None, file["etag"]):
            start = int(note["range"][6:-1])
            if start >= len(data): return self.finish_with(416, {"Content-Range": f"bytes */{len(data)}"})
        told = file.get("lie", start)
        more = {"Content-Range": f"bytes {told}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send_response(206 if start else 200)
        for key, value in {"Content-Length": len(data) - start, "ETag": file["etag"], **more, **file["headers"]}.items():
            if value is not None: self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET": self.send(data[start:start + file["cuts"].pop(0)] if file["cuts"] else data[start:], note, file["slow"])

    def send(self, data, note, slow):
        for i in range(0, len(data), PIECE):
            try: self.wfile.write(data[i:i + PIECE]); self.wfile.flush()
            except OSError: return
            note["sent"] += len(data[i:i + PIECE])
            SLEEP(slow)

    def finish_with(self, code, headers):
        self.send_response(code)
        for key, value in {"Content-Length": 0, **headers}.items(): self.send_header(key, str(value))
        self.end_headers()


@pytest.fixture
def publisher(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetching.time, "sleep", lambda _: SLEEP(0.01))
    server = Publisher()
    yield server
    server.shutdown(); server.server_close()


def zipped(entries, **options):
    "The bytes of a zip archive of (name or ZipInfo, bytes)."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as z:
        for name, data in entries: z.writestr(name, data)
    return buffer.getvalue()


def find_toy(folder): return next((r for r in (folder, *folder.glob("*")) if (r / "images").is_dir()), None) if folder.is_dir() else None


def toy(*downloads, **more):
    "A data set whose folder holds `images`."
    return Dataset("toy", "Toy", "files that are no images.", "any", read=None, recognise=find_toy, licence="CC0", citation="Nobody", downloads=downloads, **more)


TOY = zipped([("toy/images/1.png", NOISE), ("toy/images/2.png", b"2")])


def tree(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file() and p.name != unpacking.MARKER)


# ---- one file

def get(publisher, path, where, **options):
    Resume(where / "f.bin", progress=False, **options)(publisher.url + path, where / "done.bin")
    assert not list(where.glob("f.bin*"))
    return (where / "done.bin").read_bytes()


def test_broken_line_goes_on_without_sending_twice(publisher, tmp_path):
    publisher.add("/f", NOISE, cuts=[1_000_000, 700_000, 300_000])
    assert get(publisher, "/f", tmp_path) == NOISE
    asked = publisher.gets("/f")
    assert len(asked) == 4 and asked[0]["range"] is None and all(a["range"] and a["if-range"] == '"1"' for a in asked[1:])
    assert sum(a["sent"] for a in asked) <= len(NOISE) + 3*PIECE


def test_server_that_ignores_ranges_starts_anew(publisher, tmp_path):
    publisher.add("/f", NOISE, cuts=[1_000_000], ranges=False)
    assert get(publisher, "/f", tmp_path) == NOISE and sum(a["sent"] for a in publisher.gets("/f")) == 1_000_000 + len(NOISE)


@pytest.mark.parametrize("changes", [{"etag": '"2"'}, {"lie": 7}, {"etag": None, "headers": {"Last-Modified": None}}])
def test_changed_file_or_lying_server_starts_anew(publisher, tmp_path, changes):
    publisher.add("/f", NOISE, cuts=[1_000_000])
    with pytest.raises(Exception, match="Connection broken"): get(publisher, "/f", tmp_path, tries=1)
    assert 1_000_000 - PIECE <= (tmp_path / "f.bin.part").stat().st_size <= 1_000_000
    other = NOISE[::-1]
    publisher.add("/f", other, **changes)
    assert get(publisher, "/f", tmp_path) == other


def test_complete_part_is_not_fetched_again(publisher, tmp_path):
    publisher.add("/f", NOISE)
    (tmp_path / "f.bin.part").write_bytes(NOISE); (tmp_path / "f.bin.part.tag").write_text('"1"')
    assert get(publisher, "/f", tmp_path) == NOISE and sum(a["sent"] for a in publisher.gets("/f")) == 0
    (tmp_path / "f.bin.part").write_bytes(NOISE + b"more"); (tmp_path / "f.bin.part.tag").write_text('"1"')
    assert get(publisher, "/f", tmp_path) == NOISE


def test_busy_server_is_asked_again_and_a_dead_one_not_forever(publisher, tmp_path):
    publisher.add("/f", NOISE, status=[503, 429, 500])
    assert get(publisher, "/f", tmp_path) == NOISE
    publisher.add("/dead", NOISE, cuts=[0]*50)
    with pytest.raises(Exception, match="Connection broken"): get(publisher, "/dead", tmp_path, tries=4)
    assert len(publisher.gets("/dead")) == 4
    publisher.add("/stuck", NOISE, cuts=[500_000]*50, etag=None)     # never gets further, and cannot be resumed
    with pytest.raises(Exception, match="Connection broken"): get(publisher, "/stuck", tmp_path, tries=4)
    assert len(publisher.gets("/stuck")) <= 5


def test_redirects_keep_the_range(publisher, tmp_path):
    publisher.add("/f", NOISE, cuts=[1_000_000])
    publisher.add("/old", status=[302, 302], headers={"Location": "/f"})
    assert get(publisher, "/old", tmp_path) == NOISE
    assert publisher.gets("/f")[1]["range"] and sum(a["sent"] for a in publisher.gets("/f")) <= len(NOISE) + PIECE


# ---- a data set

def refused(dataset, folder, match, **options):
    with pytest.raises(InputError, match=match) as error: fetch(dataset, folder, progress=False, **options)
    return str(error.value)


def test_fetch_unpacks_and_comes_back_to_it(publisher, tmp_path, capsys):
    data = toy(Download("toy.zip", publisher.add("/toy.zip", TOY)))
    assert fetch(data, tmp_path, progress=False) == tmp_path / "toy"
    said = capsys.readouterr().out
    assert said.index("licence: CC0") < said.index("cite: Nobody") < said.index("2 files")
    assert tree(tmp_path / "toy") == ["toy/images/1.png", "toy/images/2.png"] and (tmp_path / "toy/toy/images/1.png").read_bytes() == NOISE
    assert sorted(p.name for p in (tmp_path / "downloads/toy").iterdir()) == ["fetched.json", "toy.zip"]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert fetch(data, tmp_path, progress=False) == tmp_path / "toy" and len(publisher.gets("/toy.zip")) == 1
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "toy").rglob("*")}.items() <= before.items()


def test_killed_fetch_goes_on(publisher, tmp_path):
    url = publisher.add("/toy.zip", TOY, slow=0.05)
    code = f"""from test_fetch import *; fetch(toy(Download("toy.zip", {url!r})), {str(tmp_path)!r}, progress=False)"""
    env = environment(PYTHONPATH=PATHS)
    job, part = subprocess.Popen([sys.executable, "-c", code], env=env), tmp_path / "downloads/toy/toy.zip.part"
    end = time.time() + 60
    while time.time() < end and job.poll() is None and not (part.exists() and part.stat().st_size > 400_000): time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL); job.wait()
    have = part.stat().st_size
    assert 400_000 < have < len(TOY)
    publisher.files["/toy.zip"]["slow"] = 0
    fetch(toy(Download("toy.zip", url)), tmp_path, progress=False)
    assert publisher.gets("/toy.zip")[1]["range"] == f"bytes={have}-" and publisher.gets("/toy.zip")[1]["sent"] == len(TOY) - have
    assert (tmp_path / "toy/toy/images/1.png").read_bytes() == NOISE


def test_wrong_checksum_is_removed_and_nothing_unpacked(publisher, tmp_path):
    url = publisher.add("/toy.zip", TOY)
    message = refused(toy(Download("toy.zip", url, hash="md5:" + "0"*32)), tmp_path, "does not match")
    assert url in message and "0"*32 in message and not (tmp_path / "toy").exists() and not list((tmp_path / "downloads/toy").glob("toy.zip*"))
    right = toy(Download("toy.zip", url, hash="md5:" + hashlib.md5(TOY).hexdigest().upper()))
    fetch(right, tmp_path, progress=False)
    assert json.loads((tmp_path / "downloads/toy/fetched.json").read_text())["files"]["toy.zip"]["published"]


def test_unpublished_checksum_is_noted_and_compared(publisher, tmp_path):
    data = toy(Download("toy.zip", publisher.add("/toy.zip", TOY)))
    fetch(data, tmp_path, keep_archives=False, progress=False)
    assert not (tmp_path / "downloads/toy/toy.zip").exists()
    fetch(data, tmp_path, progress=False)                                                   # unpacked: nothing to do
    assert len(publisher.gets("/toy.zip")) == 1
    (tmp_path / "toy").rename(tmp_path / "elsewhere")
    publisher.add("/toy.zip", zipped([("toy/images/1.png", b"another release")]))
    refused(data, tmp_path, "not the file that was fetched on 2.*delete fetched.json")
    (tmp_path / "downloads/toy/fetched.json").unlink()
    fetch(data, tmp_path, progress=False)
    assert (tmp_path / "toy/toy/images/1.png").read_bytes() == b"another release"


def test_failures_name_address_and_way_out(publisher, tmp_path, monkeypatch):
    for code, words in ((403, "programs are not let in"), (404, "not there any more"), (401, "log-in")):
        url = publisher.add("/x.zip", status=[code])
        message = refused(toy(Download("x.zip", url), by_hand="By hand: press the button."), tmp_path, words)
        assert message.startswith(url) and str(code) in message and "press the button" in message and "goes on" not in message
    refused(toy(Download("x.zip", publisher.add("/x.zip", b"<!DOCTYPE html>", headers={"Content-Type": "text/html; charset=utf-8"}))), tmp_path, "web page")
    refused(toy(Download("x.zip", publisher.add("/x.zip", b"<!DOCTYPE html>"))), tmp_path, "web page")      # without saying so
    (tmp_path / "downloads/toy/x.zip").unlink()
    refused(toy(Download("x.zip", "http://127.0.0.1:9/x.zip")), tmp_path, "127.0.0.1:9/x.zip: cannot be reached; is this machine online")
    publisher.add("/y.zip", TOY, cuts=[1_000_000] + [0]*9)
    assert "goes on where this one stopped" in refused(toy(Download("y.zip", publisher.url + "/y.zip")), tmp_path, "breaks again")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9"); monkeypatch.setenv("NO_PROXY", "")
    refused(toy(Download("z.zip", "http://vasomim.invalid/z.zip")), tmp_path, "the proxy does not let it through")


def test_full_disk(publisher, tmp_path, monkeypatch):
    data = toy(Download("toy.zip", publisher.add("/toy.zip", TOY)))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    refused(data, tmp_path, "needs 3.0 MB; 1.0 MB are free")
    refused(toy(Download("toy.zip", data.downloads[0].url, bytes=2_000_000)), tmp_path, "2.0 MB to download, and 1.0 MB are free")
    monkeypatch.undo()
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(Resume, "receive", full)
        refused(data, tmp_path, "the disk is full")
    with monkeypatch.context() as m:
        m.setattr(unpacking._Job, "count", full)
        refused(data, tmp_path, "the disk is full; nothing is kept")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["downloads"]
    fetch(data, tmp_path, progress=False)
    assert len(publisher.gets("/toy.zip")) == 3 and tree(tmp_path / "toy") == ["toy/images/1.png", "toy/images/2.png"]


def test_nothing_is_overwritten(publisher, tmp_path, capsys):
    data = toy(Download("toy.zip", publisher.add("/toy.zip", TOY)))
    (tmp_path / "toy").mkdir(); (tmp_path / "toy/mine.txt").write_text("mine")
    refused(data, tmp_path, "nothing is overwritten")
    assert tree(tmp_path / "toy") == ["mine.txt"]
    (tmp_path / "toy/images").mkdir()                                                       # looks like the set: was put there by hand
    assert fetch(data, tmp_path, progress=False) == tmp_path / "toy" and "not fetched by this program" in capsys.readouterr().out
    archive = tmp_path / "other/downloads/toy/toy.zip"
    archive.parent.mkdir(parents=True); archive.write_bytes(b"mine")
    refused(toy(Download("toy.zip", publisher.url + "/toy.zip", hash="sha256:" + "0"*64)), tmp_path / "other", "not the file that was published")
    assert archive.read_bytes() == b"mine"


def test_by_hand(publisher, tmp_path, capsys):
    assert fetch(toy(by_hand="By hand: ask."), tmp_path) is None and "By hand: ask." in capsys.readouterr().out
    place = tmp_path / "downloads/toy"
    place.mkdir(parents=True); (place / "as the publisher named it.zip").write_bytes(TOY)
    assert fetch(toy(by_hand="By hand: ask."), tmp_path, progress=False) == tmp_path / "toy" and len(tree(tmp_path / "toy")) == 2


def test_several_files_and_two_readers_of_one_archive(publisher, tmp_path, monkeypatch):
    parts = [Download(f"part{i}.zip", publisher.add(f"/part{i}.zip", zipped([("images/1.png", bytes([i]))]))) for i in (1, 2)]
    data = toy(*parts, Download("table.csv", publisher.add("/table.csv", b"a,b"), unpack=False))
    fetch(data, tmp_path, progress=False); fetch(data, tmp_path, progress=False)
    assert tree(tmp_path / "toy") == ["part1/images/1.png", "part2/images/1.png", "table.csv"]
    assert [len(publisher.gets(p)) for p in ("/part1.zip", "/part2.zip", "/table.csv")] == [1, 1, 1]
    one = toy(Download("toy.zip", publisher.add("/toy.zip", TOY)))
    two = replace(one, name="toy-stenosis")
    monkeypatch.setattr(fetching, "all_datasets", lambda: {"toy": one, "toy-stenosis": two})
    assert fetch(two, tmp_path / "b", progress=False) == fetch(one, tmp_path / "b", progress=False) == tmp_path / "b/toy" and len(publisher.gets("/toy.zip")) == 1
    table = list_datasets(tmp_path / "b")
    assert list(table["files"]) == [2, 2] and list(table["how to get"]) == ["vasomim data fetch toy", "vasomim data fetch toy-stenosis"]


def test_list_of_the_real_sets():
    table = list_datasets("no/such/folder").set_index("name")
    assert table["files"].sum() == 0 and table.loc["xa170k", "images"] == 171_478 and table.index.is_unique


# ---- the Hugging Face hub

def hub(publisher, data, digest, **how):
    "What huggingface_hub asks for: the address of a file with its tag and size, which leads to a store elsewhere."
    publisher.add("/store/abc", data, **how)
    headers = {"X-Repo-Commit": "a"*40, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": len(data), "Location": f"{publisher.url}/store/abc".replace("127.0.0.1", "localhost")}   # another host, as on the hub
    publisher.add("/datasets/someone/Toy/resolve/main/toy.zip", status=[302]*9, headers=headers)


def hub_fetch(publisher, folder, *names, **env):
    "What a process says that fetches these files from the stand-in of the hub."
    code = f"""
from test_fetch import *
for name in {names}:
    try: print("got", fetch(toy(Download(name, repository="someone/Toy")), {str(folder)!r}, progress=False))
    except InputError as error: print("refused", error)"""
    env = environment(PYTHONPATH=PATHS, HF_ENDPOINT=publisher.url, HF_HOME=str(folder / "hf"), HF_HUB_DISABLE_TELEMETRY="1", **env)
    return subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120, check=True).stdout


def test_hugging_face_file_resumes_and_is_checked(publisher, tmp_path):
    hub(publisher, TOY, hashlib.sha256(TOY).hexdigest(), cuts=[1_000_000])
    assert f"got {tmp_path / 'toy'}" in hub_fetch(publisher, tmp_path, "toy.zip")
    assert sum(a["sent"] for a in publisher.gets("/store/abc")) <= len(TOY) + PIECE and publisher.gets("/store/abc")[1]["range"]
    record = json.loads((tmp_path / "downloads/toy/fetched.json").read_text())["files"]["toy.zip"]
    assert record["published"] and record["hash"] == "sha256:" + hashlib.sha256(TOY).hexdigest()


def test_hugging_face_refusals(publisher, tmp_path):
    hub(publisher, TOY, "0"*64)
    said = hub_fetch(publisher, tmp_path, "toy.zip", "absent.zip")
    assert "does not match" in said and not (tmp_path / "toy").exists() and "/datasets/someone/Toy/resolve/main/absent.zip: the server answers 404" in said
    assert "HF_HUB_OFFLINE is set" in hub_fetch(publisher, tmp_path, "toy.zip", HF_HUB_OFFLINE="1")


# ---- archives

def evil(archive, folder, match, **limits):
    with pytest.raises(InputError, match=match): unpack(archive, folder, progress=False, **limits)
    assert not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))


def write(path, data): path.write_bytes(data); return path


def special(name, kind):
    info = zipfile.ZipInfo(name); info.external_attr = (kind | 0o777) << 16
    return info


def test_zip_entries_that_do_harm_are_refused_by_name(tmp_path):
    names = ["../up.txt", r"..\..\up.txt", "a/../../up.txt", "/abs.txt", r"\abs.txt", r"C:\drive.txt", "C:drive.txt", r"\\host\share\x", "a/b.txt:stream", "CON", "x/aux.txt", ".. /up.txt", "n"*300]
    links = [special("passwd", stat.S_IFLNK), special("null", stat.S_IFCHR), special("pipe", stat.S_IFIFO)]
    entries = [("good.txt", b"1")] + [(n, b"x") for n in names] + [(n, b"/etc/passwd") for n in links] + [("passwd/x", b"x"), ("good.txt/x", b"x"), ("empty/", b"")]
    report = unpack(write(tmp_path / "a.zip", zipped(entries)), tmp_path / "in" / "out", progress=False)
    assert tree(tmp_path) == ["a.zip", "in/out/good.txt", "in/out/passwd/x"] and not any(p.is_symlink() for p in tmp_path.rglob("*"))
    assert sorted(name for name, _ in report.refused) == sorted([*names, "passwd", "null", "pipe", "good.txt/x"])
    assert not list(tmp_path.parent.glob("up.txt")) and not list(Path("/").glob("abs.txt"))


@pytest.fixture
def suspicious(monkeypatch): monkeypatch.setattr(unpacking, "HARMLESS", 1 << 20)     # bombs of a megabyte do for a test


def test_zip_bombs(tmp_path, suspicious):
    zeros = [(f"{i}.bin", bytes(3 << 20)) for i in range(6)]
    flat = write(tmp_path / "flat.zip", zipped(zeros, compression=zipfile.ZIP_DEFLATED))
    evil(flat, tmp_path / "o", "a bomb")
    evil(write(tmp_path / "inner.zip", zipped([("more.zip", flat.read_bytes())])), tmp_path / "o", "a bomb")                # one level down
    evil(write(tmp_path / "many.zip", zipped([(str(i), b"") for i in range(2000)])), tmp_path / "o", "2,000 entries", max_files=1999)
    evil(write(tmp_path / "big.zip", TOY), tmp_path / "o", "max_bytes", max_bytes=1_000_000)
    plain = bytearray(zipped([("a.bin", bytes(400_000)), ("b.bin", bytes(400_000))], compression=zipfile.ZIP_DEFLATED))
    z = zipfile.ZipFile(io.BytesIO(plain))
    second = plain.index(b"PK\1\2", z.start_dir + 4)
    lying = plain.copy(); lying[z.start_dir + 24:z.start_dir + 28] = (10).to_bytes(4, "little")                             # says 10 bytes, holds more
    evil(write(tmp_path / "lying.zip", bytes(lying)), tmp_path / "o", "damaged")
    overlap = plain.copy(); overlap[second + 20:second + 24] = (10**6).to_bytes(4, "little")
    evil(write(tmp_path / "overlap.zip", bytes(overlap)), tmp_path / "o", "overlap")


def test_zip_that_cannot_be_read_is_named(tmp_path):
    data = zipped([("a.bin", NOISE[:100_000])])
    evil(write(tmp_path / "cut.zip", data[:-100]), tmp_path / "o", r"cut\.zip: is damaged or incomplete.*download it again")
    evil(write(tmp_path / "bit.zip", data[:50_000] + bytes([data[50_000] ^ 1]) + data[50_001:]), tmp_path / "o", "CRC")
    evil(write(tmp_path / "none.zip", b""), tmp_path / "o", "no zip or 7z archive")
    evil(write(tmp_path / "page.zip", b"\n<html>"), tmp_path / "o", "web page")
    locked = bytearray(data); central = zipfile.ZipFile(io.BytesIO(data)).start_dir
    locked[6] |= 1; locked[central + 8] |= 1
    evil(write(tmp_path / "locked.zip", bytes(locked)), tmp_path / "o", "is encrypted")
    deflate64 = bytearray(data); deflate64[8] = deflate64[central + 10] = 9
    evil(write(tmp_path / "d64.zip", bytes(deflate64)), tmp_path / "o", "7-Zip")


def test_names_in_many_alphabets_doubles_and_case(tmp_path):
    buffer = bytearray(zipped([("größe/コロナ.png", b"1"), ("a/X.png", b"2"), ("a/x.png", b"3"), ("a/./X.png", b"4")]))
    z = zipfile.ZipFile(io.BytesIO(buffer))
    buffer[z.infolist()[0].header_offset + 7] &= ~8; buffer[z.start_dir + 9] &= ~8                                          # UTF-8 without saying so
    report = unpack(write(tmp_path / "a.zip", bytes(buffer)), tmp_path / "o", progress=False)
    assert "größe/コロナ.png" in tree(tmp_path / "o") and report.refused == [("a/./X.png", "twice in the archive; the first is kept")]
    assert (tmp_path / "o/a/X.png").read_bytes() == b"2" and len(report.notices) == 1 and "one name on some disks" in report.notices[0]


def make_7z(path, names, link=None, **options):
    with py7zr.SevenZipFile(path, "w", **options) as z:
        if link: z.write(link, "link")
        for name, data in names: z._writef(io.BytesIO(data), name)        # past the checks of py7zr
    return path


def test_7z(tmp_path, suspicious):
    os.symlink("/etc/passwd", tmp_path / "link")
    archive = make_7z(tmp_path / "a.7z", [("Left Dominance/größe.npz", NOISE), ("../up.txt", b"x"), ("/abs.txt", b"x"), ("C:/drive.txt", b"x"), (r"b\c.txt", b"c"), ("b/._c.txt", b"x"), ("b/c.txt", b"twice"), ("e.txt", b"")], link=tmp_path / "link")
    report = unpack(archive, tmp_path / "o", progress=False)
    assert tree(tmp_path / "o") == ["Left Dominance/größe.npz", "b/c.txt", "e.txt"] and (tmp_path / "o/b/c.txt").read_bytes() == b"c"
    assert (tmp_path / "o/Left Dominance/größe.npz").read_bytes() == NOISE and sorted(n for n, _ in report.refused) == ["../up.txt", "/abs.txt", "C:/drive.txt", "b/c.txt", "link"]
    data = archive.read_bytes()
    evil(write(tmp_path / "cut.7z", data[:-50]), tmp_path / "p", "damaged or incomplete")
    evil(write(tmp_path / "bit.7z", data[:9000] + bytes([data[9000] ^ 1]) + data[9001:]), tmp_path / "p", "damaged or incomplete")
    evil(make_7z(tmp_path / "locked.7z", [("a", b"a")], password="x"), tmp_path / "p", "is encrypted")
    evil(make_7z(tmp_path / "bomb.7z", [(str(i), bytes(3 << 20)) for i in range(5)]), tmp_path / "p", "a bomb")
    evil(make_7z(tmp_path / "many.7z", [(str(i), b"") for i in range(50)]), tmp_path / "p", "50 entries", max_files=49)


def test_7z_without_its_library(tmp_path, monkeypatch):
    archive = make_7z(tmp_path / "a.7z", [("a", b"a")])
    monkeypatch.setitem(sys.modules, "py7zr", None)
    evil(archive, tmp_path / "o", r"pip install 'vasomim\[fetch\]'")


def test_unpacking_that_was_killed_begins_anew_and_two_at_once_do_not_mix(tmp_path):
    archive = write(tmp_path / "a.zip", TOY)
    (tmp_path / ".o.unpacking").mkdir(); (tmp_path / ".o.unpacking/half.png").write_bytes(b"x")
    with unpacking.alone(tmp_path / ".o.lock", "o"), pytest.raises(InputError, match="another process"): unpack(archive, tmp_path / "o", progress=False)
    unpack(archive, tmp_path / "o", progress=False)
    assert tree(tmp_path / "o") == ["toy/images/1.png", "toy/images/2.png"] and sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "o"]
    assert finished(tmp_path / "o").files == 2


def test_mac_twins_are_neither_images_nor_failures(tmp_path):
    entries = [x for i in range(10) for x in ((f"set/{i}.png", b"png"), (f"__MACOSX/set/._{i}.png", bytes.fromhex("00051607") + bytes(4092)), (f"set/._{i}.png", b"twin"))]
    report = unpack(write(tmp_path / "mac.zip", zipped(entries)), tmp_path / "o", progress=False)
    assert len(list_images(tmp_path / "o")) == 10 and report.skipped == 20 and not report.refused


def test_archive_within_an_archive(tmp_path):
    inner = zipped([("CADICA/p1.txt", b"1"), ("CADICA/deeper.zip", TOY), (r"..\up.txt", b"x")])
    damaged = zipped([("a.txt", b"fine"), ("b.bin", NOISE[:1000])]).replace(NOISE[:1000], NOISE[1:1001])
    entries = [("A title/CADICA.zip", inner), ("A title/damaged.zip", damaged), (".unpacked.json/x", b"x"), ("A title/other.zip", inner), ("A title/other/x.txt", b"x")]
    report = unpack(write(tmp_path / "a.zip", zipped(entries)), tmp_path / "o", progress=False)
    left = ["A title/CADICA/deeper.zip", "A title/CADICA/p1.txt", "A title/damaged.zip", "A title/other.zip", "A title/other/x.txt"]
    assert tree(tmp_path / "o") == left and report.files == 5 and report.refused == [(r"..\up.txt", "a path that leaves its folder")]
    assert len(report.notices) == 2 and "damaged.zip" in str(report) and "there is a folder of that name" in str(report)


# ---- from the publisher to the pictures

def packed(root, *files, before="", separator="/"):
    "The bytes of a zip of everything below `root`, as names that begin with `before`."
    return zipped([*files, *((before + p.relative_to(root).as_posix().replace("/", separator), p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file())])


def publish(name, folder):
    "File name -> content, as the publisher of a data set packs it: CADICA in two layers, ARCADE as from Windows with evil entries, CoronaryDominance as several 7z archives."
    import fakes_labelled
    import fakes_pretraining
    if name == "cadica":
        fakes_pretraining.cadica(folder)
        return {"p9bpx9ctcv-2.zip": zipped([("CADICA, a new data set/CADICA.zip", packed(folder / "CADICA")), ("CADICA, a new data set/readme.txt", b"")])}
    if name.startswith("arcade"):
        evil = [(r"..\..\evil.txt", b"x"), (r"C:\evil.txt", b"x"), ("__MACOSX/arcade/._1.png", b"x")]
        return {"arcade.zip": packed(fakes_labelled.arcade(folder / "arcade"), *evil, before="arcade\\", separator="\\")}
    if name == "coronary-dominance":
        root = fakes_pretraining.coronary_dominance(folder)
        with py7zr.SevenZipFile(folder / "a.7z", "w") as z: z.writeall(root / "main_normal", "main_normal")
        with py7zr.SevenZipFile(folder / "b.7z", "w") as z: z.writeall(root / "main_others/bad quality", "bad quality")     # without a folder of its name
        return {"main_normal.7z": (folder / "a.7z").read_bytes(), "main_others.7z": (folder / "b.7z").read_bytes()}
    make = {"xa170k": fakes_pretraining.xa170k, "stenosis": fakes_labelled.stenosis}[name]
    make(folder / "in")
    return {f"{name}.zip": packed(folder / "in")}


@pytest.mark.parametrize("name, images", [("cadica", 8), ("arcade", 8), ("arcade-stenosis", 6), ("coronary-dominance", 7), ("xa170k", 10), ("stenosis", 8)])
def test_fetched_sets_can_be_read(publisher, tmp_path, name, images):
    files = publish(name, tmp_path / "publisher")
    downloads = tuple(Download(file, publisher.add(f"/{file}", data)) for file, data in files.items())
    root = fetch(replace(find_dataset(name), downloads=downloads), tmp_path / "raw", progress=False)
    source = open_source(root, name)
    assert len(source) >= images and not list(tmp_path.parent.glob("evil*"))
    for record in source.records[:3]: assert record.load().ndim == 3
    row = list_datasets(tmp_path / "raw").set_index("name").loc[name]
    assert Path(row["on disk"]).is_relative_to(root) and row["files"] >= len(files)
    assert not any("._" in r.path or "MACOSX" in r.path for r in source)
