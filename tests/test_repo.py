"""What a notebook cell cannot check: the repository itself."""
import json, os, subprocess, sys, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PARAMETERISED = [p for p in NOTEBOOKS if p.parent.name in ("runs", "paper", "bench")]


def cells(path): return json.loads(path.read_text())["cells"]


def test_export_and_clean_leave_no_difference(tmp_path):
    "The package is what the notebooks say, and the notebooks are clean."
    copy = tmp_path/"repo"
    subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
    changed = subprocess.run(["git", "ls-files", "-m", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for f in changed:  # the working tree, not the last commit
        if (ROOT/f).is_file(): (copy/f).parent.mkdir(parents=True, exist_ok=True); (copy/f).write_bytes((ROOT/f).read_bytes())
    subprocess.run(["git", "add", "-A"], cwd=copy, check=True)
    bin = Path(sys.executable).parent
    for command in ("nbdev_export", "nbdev_clean"): subprocess.run([bin/command], cwd=copy, check=True, capture_output=True)
    diff = subprocess.run(["git", "diff", "--stat"], cwd=copy, capture_output=True, text=True).stdout
    assert not diff, diff


def test_readme_is_made_from_the_index():
    made = subprocess.run([sys.executable, "-m", "nbconvert", "--to", "markdown", "--no-prompt", "--log-level", "ERROR", "--stdout", ROOT/"nbs"/"index.ipynb"],
                          capture_output=True, text=True, check=True).stdout.replace("../figures/", "figures/")
    assert made.strip() == (ROOT/"README.md").read_text().strip(), "run `make readme`"


@pytest.mark.parametrize("path", PARAMETERISED, ids=lambda p: p.stem)
def test_parameters_cell_survives_cleaning(path):
    "nbdev_clean deletes cell tags unless settings.ini allows them; without the tag papermill injects nothing."
    first = [c for c in cells(path) if c["cell_type"] == "code"][:2]
    assert first[0]["metadata"].get("tags") == ["parameters"]
    assert "check_parameters(globals()" in "".join(first[1]["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_fit_to_read(path):
    nb = json.loads(path.read_text())
    assert nb["metadata"]["kernelspec"]["language"] == "python"   # papermill needs it
    assert path.stat().st_size < 300_000
    assert "".join(nb["cells"][0]["source"]).startswith("# ")
    assert not any(o["output_type"] == "error" for c in nb["cells"] for o in c.get("outputs", []))


def test_a_plain_install_holds_the_package(tmp_path):
    "`pip install .` gives every module, with no optional dependency imported on the way."
    out = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--no-build-isolation", "-w", tmp_path, ROOT], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    modules = [p.stem for p in (ROOT/"sparsedm").glob("*.py")]
    assert {f"sparsedm/{m}.py" for m in modules} <= set(names)
    block = "import sys; [sys.modules.__setitem__(m, None) for m in ('sklearn', 'torch_fidelity', 'torchvision', 'datasets', 'matplotlib', 'seaborn', 'IPython')]; "
    code = block + "; ".join(f"import sparsedm.{m}" for m in modules if not m.startswith("_"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
