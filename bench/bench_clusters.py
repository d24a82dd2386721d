"""t-SNE map and silhouette of many patches against scikit-learn's.  python bench/bench_clusters.py [--points 2000 20000] [--threads 2]
Points: 50 principal components' worth of Gaussian clouds, a third of them vessel. scikit-learn's t-SNE is timed up to --limit points only (its Barnes-Hut takes minutes beyond)."""
import argparse
import time

import numpy as np
import torch
from sklearn.metrics import silhouette_score

from vasomim.probe_clusters import cluster_metrics, silhouettes, tsne_map


def cloud(n, dims=192, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.31
    return (rng.normal(size=(n, dims)) * np.linspace(3, 0.1, dims) + 3 * labels[:, None] * rng.normal(size=dims)).astype(np.float32), labels


def timed(work):
    began, cpu = time.perf_counter(), time.process_time()
    out = work()
    return out, time.perf_counter() - began, time.process_time() - cpu


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[2000, 20_000]); parser.add_argument("--limit", type=int, default=2000); parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    timed(lambda: tsne_map(cloud(200)[0], iterations=10))      # imports
    print(f"{a.threads} threads\n{'points':>8}  {'what':44}{'wall s':>9}{'CPU s':>9}")
    for n in a.points:
        x, labels = cloud(n)
        def row(what, work):
            out, wall, cpu = timed(work)
            print(f"{n:8}  {what:44}{wall:9.1f}{cpu:9.1f}", flush=True)
            return out, wall
        (y, told), mapping = row("tsne_map (openTSNE)", lambda: tsne_map(x, threads=a.threads))
        if n <= a.limit: row("  scikit-learn's t-SNE", lambda: tsne_map(x, threads=a.threads, library="sklearn"))
        ours, flat = row("silhouettes, map", lambda: silhouettes(y, labels))
        theirs, _ = row("  scikit-learn's silhouette_score", lambda: silhouette_score(y, labels))
        wide, deep = row("silhouettes, 192 features", lambda: silhouettes(x, labels))
        _, rest = row("all three indices with intervals, 192 features", lambda: cluster_metrics(x, labels, np.arange(n) // 64))
        assert abs(ours.mean() - theirs) < 1e-3, (ours.mean(), theirs)
        print(f"{n:8}  t-SNE and both silhouettes: {mapping + flat + deep:.0f} s; {told}")
