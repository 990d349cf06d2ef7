"""`make test`: nbdev_test on every notebook, then pytest; ends with 'N passed, N failed'."""
import os, re, subprocess, sys, tempfile
from pathlib import Path

root, bin = Path(__file__).resolve().parent.parent, Path(sys.executable).parent
env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

notebooks = sorted((root/"nbs").glob("[0-9]*.ipynb")) + [root/"nbs"/"index.ipynb"]
done = subprocess.run([bin/"nbdev_test", "--n_workers", str(min(os.cpu_count(), 4)), "--timing"], cwd=root, env=env, capture_output=True, text=True)
print(done.stdout + done.stderr)
failed = [n.name for n in notebooks if re.search(rf"\b{re.escape(n.stem)}\b", (done.stdout + done.stderr).lower().partition("failed on the following")[2])]
if done.returncode and not failed: failed = [n.name for n in notebooks]   # it broke before it could name one
print(f"nbdev_test: {len(notebooks) - len(failed)} notebooks passed, {len(failed)} failed {failed or ''}\n", flush=True)

with tempfile.TemporaryDirectory() as tmp:
    xml = Path(tmp)/"pytest.xml"
    tests = subprocess.run([sys.executable, "-m", "pytest", "--junitxml", xml], cwd=root, env=env)
    counts = {k: int(v) for k, v in re.findall(r'\b(tests|failures|errors|skipped)="(\d+)"', xml.read_text())} if xml.exists() else {"tests": 1, "errors": 1}
bad = counts.get("failures", 0) + counts.get("errors", 0)
skipped = counts.get("skipped", 0)
passed = len(notebooks) - len(failed) + counts["tests"] - bad - skipped
print(f"\n{passed} passed, {len(failed) + bad} failed" + (f", {skipped} skipped" if skipped else ""))
sys.exit(bool(done.returncode or tests.returncode or failed or bad))
