"""`make test`: nbdev_test on every notebook, then pytest; names the ten slowest, ends with 'N passed, N failed'."""
import os, re, subprocess, sys, tempfile, time
from pathlib import Path
from xml.etree import ElementTree

ROOT, SCRIPTS = Path(__file__).resolve().parent.parent, Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def test_notebooks():
    "(name, seconds, failed) of each notebook; a worker of nbdev_test imports PyTorch once for all it is given."
    command = [SCRIPTS/"nbdev_test", "--n_workers", str(min(os.cpu_count(), 4)), "--timing"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    print(said)
    paths = sorted((ROOT/"nbs").glob("*.ipynb"))
    seconds = {name: float(n) for name, n in re.findall(r"^(\S+\.ipynb): (\d+) secs$", said, re.M)}
    named = said.lower().partition("failed on the following")[2]
    failed = {p.name for p in paths if re.search(rf"\b{re.escape(p.stem)}\b", named)}
    if done.returncode and not failed: failed = {p.name for p in paths}   # it broke before it could name one
    return [(p.name, seconds.get(p.name, 0.), p.name in failed) for p in paths]


def run_pytest():
    "(results, exit code), results as above."
    with tempfile.TemporaryDirectory() as tmp:
        xml = Path(tmp)/"pytest.xml"
        code = subprocess.run([sys.executable, "-m", "pytest", "--junitxml", xml], cwd=ROOT, env=ENVIRONMENT).returncode
        if not xml.exists(): return [("pytest", 0., "it wrote no report")], 0, code
        cases = list(ElementTree.parse(xml).iter("testcase"))
    bad = lambda c: " ".join(child.tag for child in c if child.tag in ("failure", "error"))
    skipped = sum(child.tag == "skipped" for c in cases for child in c)
    return [(c.get("name"), float(c.get("time")), bad(c)) for c in cases], skipped, code


began = time.monotonic()
notebooks = test_notebooks()
failed = [name for name, _, bad in notebooks if bad]
print(f"nbdev_test: {len(notebooks) - len(failed)} notebooks passed, {len(failed)} failed {failed or ''}\n", flush=True)
tests, skipped, code = run_pytest()

print("\nthe ten slowest")
for name, seconds, _ in sorted(notebooks + tests, key=lambda t: -t[1])[:10]: print(f"{seconds:6.1f} s  {name}")
spent = os.times()
cpu = spent.children_user + spent.children_system
print(f"{(time.monotonic() - began) / 60:.1f} minutes, {cpu / 60:.1f} CPU-minutes")
bad = len(failed) + sum(bool(wrong) for *_, wrong in tests)
print(f"\n{len(notebooks) + len(tests) - bad - skipped} passed, {bad} failed" + (f", {skipped} skipped" if skipped else ""))
sys.exit(bool(code or bad))
