"""The notebooks are the package: exported, clean, parameterised, and in the order in which they may use each other."""
import ast
import configparser
import json
import re
import shutil
import sys
from collections import Counter

import pytest

from conftest import ROOT, program

LIBRARY = sorted((ROOT / "nbs" / "lib").glob("*.ipynb"))
JOBS = sorted(p for p in [*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs" / "figures").glob("*.ipynb")] if p.stem not in ("index", "explore"))
ALL = sorted({*LIBRARY, *JOBS, *(ROOT / "nbs").glob("*.ipynb")})
MODULES = sorted(p for p in (ROOT / "vasomim").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
FLOORS = {"core": 0, "proof": 5, "data": 0, "checkpoint": 0, "checkpoint_encoders": 0, "anatomy": 1, "mae": 2, "hog": 2, "frequency": 2, "unet": 2, "masking_driven": 2, "masking_multiblock": 2, "objectives_cost": 5, "vessel_share": 2, "objectives": 3, "checkpoint_layouts": 0, "losses": 2, "masking": 2, "training": 3, "methods": 3, "downstream.networks": 3, "downstream.detection_parts": 3, "downstream.selective_scan": 3, "downstream.wkv": 3,
          "pretrain": 4, "finetune": 4, "predict": 4, "downstream": 4, "study": 5, "stats": 5, "probe": 5, "probe_clusters": 5, "probe_tokens": 5, "cli": 6, "cli_data": 6, "cli_methods": 6, "cli_study": 6, "explorer": 6, "explorer_state": 6, "explorer_panels": 6, "explorer_input": 6, "explorer_network": 6, "explorer_compare": 6, "explorer_widgets": 6, "explorer_layout": 6, "figures": 6, "figures_finetune": 6, "figures_style": 6, "figures_paper": 6,
          "figures_masking": 6, "figures_answers": 6, "figures_study": 6, "figures_methods": 6}
NOTEBOOK_ONLY = {"fastcore", "nbdev", "papermill", "IPython", "ipywidgets", "jupyter", "jupyter_client", "jupyter_core", "nbformat", "nbconvert", "ipykernel", "seaborn", "sklearn"}
relative = lambda paths: [p.relative_to(ROOT).as_posix() for p in paths]


def read(path): return json.loads(path.read_text(encoding="utf-8"))
def source(cell): return "".join(cell["source"])
def tagged(book): return [i for i, c in enumerate(book["cells"]) if "parameters" in c["metadata"].get("tags", [])]
def exports(book): return [m[1] for c in book["cells"] if c["cell_type"] == "code" for m in [re.search(r"^#\|\s*default_exp\s+(\S+)", source(c), re.M)] if m]
def name_of(module): return ".".join(module.relative_to(ROOT / "vasomim").with_suffix("").parts)


def notebook_of(module):
    "The notebook that a module says it comes from."
    told = re.search(r"File to edit: (\S+)\.ipynb\.", module.read_text(encoding="utf-8"))
    assert told, f"{module}: does not name its notebook"
    return (module.parent / f"{told[1]}.ipynb").resolve()


@pytest.mark.parametrize("path", ALL, ids=relative(ALL))
def test_notebook_is_small_and_plain(path):
    book = read(path)
    assert path.stat().st_size <= 500_000 and "widgets" not in book["metadata"]
    assert book["metadata"]["kernelspec"]["name"] == "python3" and book["metadata"]["kernelspec"]["language"] == "python"
    for cell in book["cells"]:
        for out in cell.get("outputs", []):
            assert out["output_type"] != "error" and not any("widget" in kind for kind in out.get("data", {}))
            text = "".join(out.get("text", [])) + "".join("".join(v) for k, v in out.get("data", {}).items() if k.startswith("text/"))
            assert not re.search(r"(?<![\w.])/(home|root|Users|work|tmp|var)/", text), f"a path of one machine in an output: {text[:200]}"


@pytest.mark.parametrize("path", JOBS, ids=relative(JOBS))
def test_job_notebook_has_one_cell_of_parameters(path):
    book = read(path)
    assert len(tagged(book)) == 1
    first = next(i for i, c in enumerate(book["cells"]) if c["cell_type"] == "code")
    assert tagged(book) == [first]
    assert all(isinstance(s, ast.Assign) for s in ast.parse(source(book["cells"][first])).body)      # papermill's readers take nothing else


def test_jobs_exist(): assert {"pretrain", "train_segmentor"} <= {p.stem for p in JOBS}


@pytest.mark.parametrize("path", LIBRARY, ids=relative(LIBRARY))
def test_library_notebook_defines_one_module(path):
    names = exports(read(path))
    assert len(names) == 1, "one `#| default_exp`"
    assert path.stem.split("_", 1)[1] == names[0]
    assert notebook_of(ROOT / "vasomim" / (names[0].replace(".", "/") + ".py")) == path


def test_every_module_has_its_own_notebook():
    counts = Counter(n for p in LIBRARY for n in exports(read(p)))
    assert set(counts.values()) == {1}, counts.most_common(3)
    assert {name_of(m) for m in MODULES} == set(counts)
    for module in MODULES: assert notebook_of(module).is_file(), module


def imported(module):
    "Modules of this package that a module imports anywhere, and the names of the other packages."
    here, ours, others = ["vasomim", *module.relative_to(ROOT / "vasomim").parent.parts], set(), set()
    known = {"vasomim." + name_of(m) for m in MODULES}
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[:len(here) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{start}.{a.name}" if f"{start}.{a.name}" in known else start for a in node.names]
        else: continue
        for name in names: (ours if name.split(".")[0] == "vasomim" else others).add(name)
    return ours - {"vasomim"}, {n.split(".")[0] for n in others}


def floor(name):
    found = [f for f in (name, name.rsplit(".", 1)[0], name.split(".")[0]) if f in FLOORS]
    assert found, f"vasomim.{name}: say in tests/test_notebooks.py on which floor it is"
    return FLOORS[found[0]]


def number(module):
    "(60, 'a') of 60a_explorer_state.ipynb"
    told = re.match(r"(\d+)([a-z]?)_", notebook_of(module).name)
    return int(told[1]), told[2]


@pytest.mark.parametrize("module", MODULES, ids=relative(MODULES))
def test_module_imports_only_from_below(module):
    ours, others = imported(module)
    by_name = {"vasomim." + name_of(m): m for m in MODULES}
    for name in ours:
        assert name in by_name, f"imports {name}, which is no module of the package"
        lower, same = floor(name.removeprefix("vasomim.")) < floor(name_of(module)), floor(name.removeprefix("vasomim.")) == floor(name_of(module))
        assert lower or (same and number(by_name[name]) < number(module)), f"imports {name} from above or beside"
    allowed = {"IPython", "ipywidgets"} if floor(name_of(module)) == 6 and "explorer" in name_of(module) else set()
    assert not others & (NOTEBOOK_ONLY - allowed)
    lines = module.read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{lines} lines; a module that can be held in the head has about 300"


def test_a_list_of_methods_and_the_explorer_import_no_slow_library(tmp_path):
    "timm, torchvision and pandas take two seconds together: who only reads names and looks at masks need not wait for them."
    code = "import sys, vasomim.explorer; from vasomim.training.method import find_presets; assert 'dino' in find_presets(); print(sorted({'timm', 'torchvision', 'pandas', 'pydicom', 'segmentation_models_pytorch'} & set(sys.modules)))"
    told = program(sys.executable, "-c", code, cwd=tmp_path)
    assert told.returncode == 0 and told.stdout.strip() == "[]", told.stdout + told.stderr


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    "A copy of the repository, its job notebooks saved by somebody else's Jupyter, then cleaned and exported."
    copy = tmp_path_factory.mktemp("copy") / "repository"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_runs", "runs", "weights")
    for folder in ("nbs", "vasomim"): shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("settings.ini", "README.md"): shutil.copy(ROOT / file, copy)
    before = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.suffix in (".py", ".ipynb")}
    for path in JOBS:
        book = read(path)
        book["metadata"]["kernelspec"]["display_name"] = "Python 3 (lab)"
        book["metadata"]["language_info"] = {"name": "python", "version": "3.12.1"}
        for cell in book["cells"]:
            cell["metadata"] = {**cell["metadata"], "scrolled": True}
            if cell["cell_type"] == "code": cell["execution_count"] = 7
        (copy / path.relative_to(ROOT)).write_text(json.dumps(book), encoding="utf-8")
    for module in copy.glob("vasomim/core.py"): module.write_text("", encoding="utf-8")       # so that an export that does nothing is noticed
    for command in ("nbdev_clean", "nbdev_export"):
        done = program(command, cwd=copy, PYTHONPATH=str(copy))
        assert done.returncode == 0, done.stderr
    return before, {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.suffix in (".py", ".ipynb") and "__pycache__" not in p.parts}


def test_package_is_what_the_notebooks_export(again):
    before, after = ({p: b for p, b in side.items() if p.parts[0] == "vasomim"} for side in again)
    assert before.keys() == after.keys()
    assert [str(p) for p in before if before[p] != after[p]] == []


def test_notebooks_are_clean_and_stay_so_whoever_saves_them(again):
    before, after = ({p: b for p, b in side.items() if p.parts[0] == "nbs"} for side in again)
    assert [str(p) for p in before if before[p] != after.get(p)] == []


def test_cleaning_keeps_the_tag_of_the_parameters(again):
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert "tags" in ini["DEFAULT"]["allowed_cell_metadata_keys"].split()
    for path in JOBS:
        book = json.loads(again[1][path.relative_to(ROOT)])
        assert len(tagged(book)) == 1 and not any("scrolled" in c["metadata"] for c in book["cells"]), path


def test_readme_is_the_index_notebook():
    if not (ROOT / "nbs" / "index.ipynb").exists(): pytest.skip("nbs/index.ipynb is not there")
    from make_readme import readme
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme()
