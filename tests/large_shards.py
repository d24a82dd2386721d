"""Pixels beyond 2 GB in one set: packed, joined with itself, read at both ends, shuffled, opened by `datasets` and combined; prints what it took.

    python tests/large_shards.py [--count 8300] [--size 512] [--folder WHERE]       about 4.5 GB of disk, a few minutes on one core

Picture i is filled with i mod 251 and its four corner bytes hold i. Ends with an error where a byte is wrong or memory grows
by more than 300 MB, but for `combine_chunks`, whose purpose is a copy.
"""
import argparse
import os
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vasomim.data.packed import join_packed, open_packed
from vasomim.data.packing import pack
from vasomim.data.shards import map_shard, view_column
from vasomim.data.sources.base import Record, Source


def corners(i): return list(int(i).to_bytes(4, "big"))


def draw(size, record):
    "Picture i, through the gray values that packing turns into these bytes."
    i = int(record.path)
    x = torch.full((1, size, size), i % 251/255)
    x[0, [0, 0, -1, -1], [0, -1, 0, -1]] = torch.tensor(corners(i), dtype=torch.float32)/255
    return x


def numbered(name, count, size, first=0):
    records = tuple(Record(name, "", f"{i:06d}", read=partial(draw, size)) for i in range(first, first + count))
    return Source(name, records, f"{name}-{count}-{size}")


def right(x, i):
    "Whether (H, W) bytes are picture i; four rows of the inside stand for all of it."
    return x[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == corners(i) and all((row[1:-1] == i % 251).all() for row in (x[0], x[1], x[len(x)//2], x[-1]))


def own_memory():
    "Bytes of memory that belong to this process alone and are not pages of a mapped file."
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


class Watch:
    "Prints each step with its time and the highest growth of memory during it; the largest of those that count is kept."
    def __init__(self): self.begin, self.most = own_memory(), 0

    def __call__(self, what, work, counts=True):
        peak, ended = [own_memory()], threading.Event()
        def sample():
            while not ended.wait(0.02): peak[0] = max(peak[0], own_memory())
        sampler, start = threading.Thread(target=sample), time.time()
        sampler.start()
        try: result = work()
        finally: ended.set(); sampler.join()
        grown = max(peak[0], own_memory()) - self.begin
        if counts: self.most = max(self.most, grown)
        print(f"{what:<40} {time.time() - start:7.1f} s   memory {grown/1e6:+8.1f} MB", flush=True)
        return result


def read_shuffled(data, count, batch=64):
    "One epoch in random order; every picture once."
    seen, order = np.zeros(len(data), bool), data.order(np.random.default_rng(0))
    for k in range(0, len(order), batch):
        ids = order[k:k + batch]
        for i, x in zip(ids, data.images(ids)[:, 0].numpy()): assert right(x, i % count), f"row {i} is wrong"
        assert not data.vessels(ids[:2]).any()
        seen[ids] = True
    assert seen.all()


def combined(folder):
    "The binary column of all shards as one table, combined; Arrow may keep several chunks, no byte may move."
    import pyarrow as pa
    data = open_packed(folder)
    table = pa.Table.from_batches([b.select(["image"]) for s in data.info["shards"] for b in map_shard(Path(folder, s["file"]), s["rows"], data.schema)])
    column = table.combine_chunks()["image"]
    return [np.frombuffer(column[i].as_py(), np.uint8).reshape(data.size) for i in (0, len(table) - 1)]


def opened_elsewhere(folder, rows):
    "Rows as `datasets.load_from_disk` gives them, also from two sets joined there."
    from datasets import concatenate_datasets, load_from_disk
    one = load_from_disk(str(folder))
    both = concatenate_datasets([one, one]).shuffle(seed=0)
    where = {int(k): i for i, k in enumerate(both._indices.column(0).to_pylist())} if both._indices is not None else {}
    size = one[0]["height"], one[0]["width"]
    return [np.frombuffer(one[i]["image"], np.uint8).reshape(size) for i in rows] + [np.frombuffer(both[where[i]]["image"], np.uint8).reshape(size) for i in rows if i in where]


def main(count, size, folder):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vasomim-large-", dir=folder) as work:
        work, watch = Path(work), Watch()
        a = watch("packed, shards as large as allowed", lambda: pack(numbered("a", count, size), work/"a", size, shard_rows=10**9, processes=1, progress=False))
        b = watch("packed again, other identities", lambda: pack(numbered("b", count, size), work/"b", size, shard_rows=10**9, processes=1, progress=False))
        assert len(a) == len(b) == count
        files = [(work/"a"/s["file"]).stat().st_size for s in a.info["shards"]]
        print(f"{count} pictures, {count*size*size/2**30:.2f} GiB of pixels, {len(files)} shards of {min(files)/2**20:.0f}..{max(files)/2**20:.0f} MiB")
        assert max(files) <= 1 << 30, "a shard is larger than 1 GiB"
        views = [view_column(batch, "image") for s in a.info["shards"] for batch in map_shard(work/"a"/s["file"], s["rows"], a.schema)]
        assert not any(v.flags.owndata or v.flags.writeable for v in views) and sum(map(len, views)) == count       # nothing was copied
        joined = watch("joined", lambda: join_packed(work/"both", [work/"a", work/"b"]))
        assert len(joined) == 2*count
        for i in (0, count - 1, count, 2*count - 1): assert right(joined.images([i])[0, 0].numpy(), i % count), f"row {i} is wrong"
        print(f"rows {count - 1} and {2*count - 1}: right")
        watch("one shuffled epoch of both", lambda: read_shuffled(joined, count))
        for x, i in zip(watch("combine_chunks (makes a copy)", lambda: combined(work/"a"), counts=False), (0, count - 1)): assert right(x, i)
        rows = (0, count//2, count - 1)
        for x, i in zip(watch("datasets: opened, joined, shuffled", lambda: opened_elsewhere(work/"a", rows)), rows*2): assert right(x, i)
        for x in watch("opened anew, last row", lambda: open_packed(work/"both").images([2*count - 1])): assert right(x[0].numpy(), count - 1)
        print(f"largest growth of memory {watch.most/1e6:.0f} MB")
        assert watch.most < 300e6, "memory grew by more than 300 MB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8300); parser.add_argument("--size", type=int, default=512); parser.add_argument("--folder", help="where the sets are written for the while")
    options = parser.parse_args()
    main(options.count, options.size, options.folder)
