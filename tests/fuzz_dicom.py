"""Mutated DICOM files, seeded: whatever is in them, the answer is a picture or an `InputError`; no crash, no hang, no memory for what a header only claims.
`python tests/fuzz_dicom.py --count 5000 --seed 1` runs many, in processes of their own, since the decoders are C; a failure is named by its seed."""
import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SECONDS, MEGABYTES = 5, 400                   # for one file of 64 x 64 pixels
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)
TEXTS = (b"", b"-", b"0", b"-1", b"1e308", b"nan", b"inf", b"0,5", b"99999999999999999999", b"1\\2\\3", b"\\" * 40, b"\xff\xfe\xfd", b"0" * 200, b"1" + b"\\1" * 3000)


def corpus(folder):
    "Small good files of all kinds, as bytes."
    import fakes_dicom as fakes
    return [f.read_bytes() for f in fakes.good_files(folder).values()]


def mutate(data, rng):
    "Up to six changes: bytes, lengths, texts of elements, parts cut out, doubled, moved or filled."
    data = bytearray(data)
    header = max(140, data.rfind(b"\xe0\x7f\x10\0"))            # most changes concern the header
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        kind, at = rng.choice([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 8, 8]), int(rng.integers(0, min(len(data), header) if rng.random() < 0.8 else len(data)))
        if kind == 0: data[at] = rng.integers(0, 256)
        elif kind == 1: size = int(rng.choice([2, 4])); data[at:at + size] = (int(rng.choice(NUMBERS)) & (256**size - 1)).to_bytes(size, "little")
        elif kind == 2: data[at:at + int(rng.integers(1, 64))] = b""
        elif kind == 3: part = data[at:at + int(rng.integers(1, 200))]; data[at:at] = part
        elif kind == 4: data[at:at + 16] = rng.bytes(16)
        elif kind == 5: del data[int(rng.integers(len(data) // 4, len(data))):]
        elif kind == 6: data[at:at] = b"\x28\0\x10\x30SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff" + b"\x28\0\x10\x30SQ\0\0\xff\xff\xff\xff" * int(rng.integers(1, 3000))
        else:                                                   # the value of a real element, with its length made right (7) or left (8)
            found = [i for i in range(132, min(len(data) - 8, header)) if data[i + 4:i + 6] in (b"US", b"DS", b"IS", b"CS", b"UI", b"SS", b"LO") and data[i + 1] < 0x30]
            if not found: continue
            i = int(rng.choice(found)); length = int.from_bytes(data[i + 6:i + 8], "little")
            value = TEXTS[rng.integers(len(TEXTS))] if rng.random() < 0.7 else int(rng.choice(NUMBERS)).to_bytes(4, "little")
            if kind == 7: data[i + 6:i + 8 + length] = len(value).to_bytes(2, "little") + value
            else: data[i + 8:i + 8 + length] = value
        if not data: data = bytearray(b"\0")
        header = min(header, len(data))
    return bytes(data)


def check(file):
    "Reads the file in every way; raises for anything but a proper answer."
    from vasomim.core import InputError
    from vasomim.data.dicom import decode_frame
    from vasomim.data.dicom import read_header
    from vasomim.data.dicom import treatment
    from vasomim.data.dicom_header import visible_area
    from vasomim.data.sources.dicom import dicom_source
    from vasomim.data.sources.dicom import recognise_dicom
    recognise_dicom(file.parent)
    try: source = dicom_source(file.parent, burned_in=True, progress=False)
    except InputError: source = ()
    try: header = read_header(file)
    except InputError: return False
    assert visible_area(header).any() and len(header.frames) == len(source)
    for i in sorted({0, len(header.frames) // 2, len(header.frames) - 1}):
        try: x = decode_frame(file, i)
        except InputError: continue
        assert x.shape == (1, header.rows, header.columns) and x.min() >= 0 and x.max() <= 1 and treatment(header, i)      # NaN fails
    return True


def worker(seeds):
    "Checks the seeds in this process; prints the seed before each, so that a crash is known by it."
    class TooLong(BaseException): pass          # not an Exception: the reader must not be able to swallow it
    def too_long(*_): raise TooLong(f"longer than {SECONDS} s")
    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VASOMIM_SALT_FILE"] = str(Path(folder, "config", "salt"))
        samples = corpus(Path(folder, "good"))
        for seed in seeds:
            rng = np.random.default_rng(seed)
            file = Path(folder, "one", f"{seed}"); file.parent.mkdir(exist_ok=True)
            file.write_bytes(mutate(samples[rng.integers(len(samples))], rng))
            print(f"seed {seed}", flush=True)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.alarm(SECONDS)
            if check(file): print("readable 1")
            signal.alarm(0)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            assert grown < MEGABYTES, f"seed {seed}: {grown} MB more"
            file.unlink()


def run(count, seed=0, chunk=1000):
    "Failures as texts, and how many of the files could still be read."
    failures, readable, at = [], 0, seed
    while at < seed + count:
        stop = min(at + chunk, seed + count)
        done = subprocess.run([sys.executable, __file__, "--worker", str(at), str(stop)], capture_output=True, text=True, errors="replace")
        lines = done.stdout.split("\n")
        last = [int(line[5:]) for line in lines if line.startswith("seed ")]
        readable += sum(int(line[9:]) for line in lines if line.startswith("readable "))
        if done.returncode == 0: at = stop; continue
        failures.append(f"seed {last[-1] if last else at}: exit {done.returncode}: {done.stderr.strip()[-600:]}")
        at = (last[-1] if last else stop) + 1
    return failures, readable


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000); parser.add_argument("--seed", type=int, default=0); parser.add_argument("--worker", type=int, nargs=2)
    args = parser.parse_args()
    if args.worker: worker(range(*args.worker))
    else:
        began = time.time(); failures, readable = run(args.count, args.seed)
        print(*failures, f"{args.count} files in {time.time() - began:.0f} s, {readable} of them readable, {len(failures)} failures", sep="\n")
        sys.exit(bool(failures))
