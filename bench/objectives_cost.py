"""What the objectives of Table V cost: parameters and FLOPs of one image, forward.  python bench/objectives_cost.py [--csv figures/tab05_costs.csv]
params_m, flops_g: everything that is in memory, and torch's own counter, at the method's mask ratio .5. as_published_*: the rules of the counter `thop`, with which the paper's numbers come out. See nbs/lib/50d_objectives_cost.ipynb."""
import argparse
from pathlib import Path

import pandas as pd
import torch

from vasomim.core import usable_cpus
from vasomim.figures_paper import paper_value
from vasomim.objectives_cost import ROWS, cost_row

PRINTED = dict(zip(ROWS, ("baseline", "L_cons", "DINO", "CLIP", "DINOv3", "EMA", "LPIPS", "Contextual")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default=str(Path(__file__).parents[1] / "figures" / "tab05_costs.csv")); parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    args = parser.parse_args()
    torch.set_num_threads(usable_cpus()); torch.manual_seed(0)
    table = []
    for row in args.rows:
        found = cost_row(row)
        table.append(dict(objective=row, paper_params_m=paper_value("V", PRINTED[row], "parameters, M"), as_published_params_m=found["as_published_params_m"], params_m=found["params_m"],
                          paper_flops_g=paper_value("V", PRINTED[row], "FLOPs, G"), **{k: found[k] for k in ("as_published_flops_g", "flops_g", "flops_at_75_g", "why_they_differ")}))
        print(pd.DataFrame(table[-1:]).drop(columns="why_they_differ").to_string(index=False, header=len(table) == 1), flush=True)
    table = pd.DataFrame(table)
    for column in ("params_m", "flops_g"):
        away = (table[f"paper_{column}"] - table[f"as_published_{column}"]).abs().max()
        print(f"{column}: the paper's numbers are met to {away:.3f}")
    for row in table.itertuples(): print(f"{row.objective}: {row.why_they_differ}")
    table.to_csv(args.csv, index=False)


if __name__ == "__main__": main()
