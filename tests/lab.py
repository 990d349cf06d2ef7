"""Notebooks in a real JupyterLab, as a reader has them: opened, run and saved in Chromium, in a copy of the repository.

python tests/lab.py [01_ste …] [--shots FOLDER]"""
import argparse, json, os, secrets, shutil, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (1440, 900)
MINUTES = 10   # for one notebook

# of the notebook in front: is it there, is it done, what is in it
READY = """path => { const panel = window.jupyterapp?.shell.currentWidget
  return panel?.context?.path === path && panel.sessionContext?.session?.kernel?.status === 'idle' }"""
STATE = """() => { const panel = window.jupyterapp.shell.currentWidget, cells = [...panel.content.model.cells]
  const code = cells.map((c, i) => [i, c]).filter(([i, c]) => c.type === 'code' && c.sharedModel.source.trim())
  const outputs = code.flatMap(([i, c]) => c.outputs.toJSON().map(o => [i, o]))
  return {status: panel.sessionContext.session.kernel.status, code: code.length,
    waiting: code.filter(([i, c]) => !c.executionCount).length,
    errors: outputs.filter(([i, o]) => o.output_type === 'error').map(([i, o]) => `cell ${i}: ${o.ename}: ${o.evalue}`),
    figures: outputs.filter(([i, o]) => Object.keys(o.data || {}).some(k => k.startsWith('image/')))
      .map(([i, o]) => i)} }"""
SEEN = """async i => { const panel = window.jupyterapp.shell.currentWidget.content
  panel.activeCellIndex = i
  await panel.scrollToItem(i, 'center')
  await new Promise(done => setTimeout(done, 500))
  const boxes = [...panel.widgets[i].node.querySelectorAll('.jp-OutputArea-output img')]
  return boxes.filter(b => b.isConnected && b.naturalWidth && b.getBoundingClientRect().height > 9).length }"""
WIDE = """() => { const notebook = window.jupyterapp.shell.currentWidget.content.node
  return [document.documentElement, notebook, ...notebook.querySelectorAll('.jp-WindowedPanel-outer')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => `${e.className || 'page'} ${e.scrollWidth} px`) }"""


def git(folder, *command):
    own = ["-c", "user.name=lab", "-c", "user.email=lab@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def copied(folder):
    "The working tree in a repository of its own, committed."
    copy = folder/"sparsedm"
    for name in filter(None, git(ROOT, "ls-files", "-z", "-c", "-o", "--exclude-standard").split("\0")):
        if not (ROOT/name).is_file(): continue
        (copy/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, copy/name)
    git(copy, "init", "-q")
    git(copy, "add", "-A")
    git(copy, "commit", "-q", "-m", "As it was")
    return copy


@contextmanager
def jupyterlab(folder, copy):
    "The address of a server with nbdev's hooks, and with no file of the user's."
    home, token = folder/"home", secrets.token_hex(16)
    home.mkdir()
    jupyter = {f"JUPYTER_{k}_DIR": str(home/".jupyter") for k in ("CONFIG", "DATA", "RUNTIME")}
    own = {**os.environ, **jupyter, "PYTHONPATH": str(copy)}
    subprocess.run([Path(sys.executable).parent/"nbdev_install_hooks"], cwd=copy, check=True, capture_output=True,
                   env={**own, "HOME": str(home)})
    (home/".jupyter/labconfig").mkdir()
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home/".jupyter/labconfig/page_config.json").write_text(json.dumps(quiet))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={copy}",
               "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True", "--no-browser", "--allow-root"]
    log = (folder/"jupyter.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=copy, env=own, stdout=log, stderr=log)
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try: urllib.request.urlopen(f"{base}/api?token={token}")
            except (urllib.error.URLError, ConnectionError): time.sleep(.5)
            else: break
        else: raise TimeoutError((folder/"jupyter.log").read_text()[-2000:])
        yield base, token
    finally:
        server.terminate()
        server.wait(30)


def run_all(page, base, path):
    "Open it, Run → Run All Cells, wait until the kernel is idle or it has been too long; then its state."
    page.goto(f"{base}/lab/workspaces/{Path(path).stem}/tree/{path}")   # none of the others is open
    page.wait_for_function(READY, arg=path, timeout=90_000)
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True).click()
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        time.sleep(1)
        state = page.evaluate(STATE)
        if state["status"] == "idle" and (state["errors"] or not state["waiting"]): break
    return state


def faults_of(page, copy, path, state):
    "What is wrong with a notebook that has run; saves it."
    yield from state["errors"]
    if state["waiting"]: yield f"{state['waiting']} of {state['code']} code cells were not run"
    if state["status"] != "idle": yield f"the kernel is {state['status']} after {MINUTES} minutes"
    for cell in sorted(set(state["figures"])):
        wanted, seen = state["figures"].count(cell), page.evaluate(SEEN, cell)
        if seen < wanted: yield f"cell {cell}: {seen} of {wanted} figures can be seen"
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        yield from (f"too wide at {width} px: {out}" for out in page.evaluate(WIDE))
    page.keyboard.press("Control+s")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=30_000)
    page.wait_for_timeout(500)
    yield from changes(*versions(copy, path))


def versions(copy, path):
    "A notebook as it is committed, and as it was saved."
    return json.loads(git(copy, "show", f"HEAD:{path}")), json.loads((copy/path).read_text())


def changes(old, new):
    "What saving changed besides outputs: nothing, as nbdev's hook takes out all else that a run leaves."
    for cell in [*old["cells"], *new["cells"]]: cell.pop("outputs", None)
    if {**old, "cells": 0} != {**new, "cells": 0}: yield f"saved with other metadata: {new['metadata']}"
    if len(old["cells"]) != len(new["cells"]): yield f"saved with {len(new['cells'])} cells"
    yield from (f"saved with another cell: {b}" for a, b in zip(old["cells"], new["cells"]) if a != b)


def shown(cell):
    "What it printed, in however many pieces, and its other outputs."
    outputs = cell.get("outputs", [])
    printed = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
    return printed, [o for o in outputs if o["output_type"] != "stream"]


def look(page, base, copy, name, shots):
    "Run one notebook and say how it went; the number of faults."
    path, start = f"nbs/{name.removesuffix('.ipynb')}.ipynb", time.monotonic()
    state = run_all(page, base, path)
    ran = time.monotonic() - start
    faults = list(faults_of(page, copy, path, state))
    if shots:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(500)
            page.screenshot(path=Path(shots)/f"lab-{Path(path).stem}-{width}.png")
    cells = zip(*(nb["cells"] for nb in versions(copy, path)))
    other = [i for i, (old, new) in enumerate(cells) if shown(old) != shown(new)]
    print(f"{path}: {state['code']} code cells, {len(state['figures'])} figures, {ran:.0f} s; outputs", end=" ")
    print(*(["differ from those committed in cells", *other] if other else ["as committed"]), flush=True)
    for fault in faults: print(f"  {fault}")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    return len(faults)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["index", "00_masking", "01_ste", "01a_like"], help="in nbs/")
    parser.add_argument("--shots", help="folder for screenshots")
    args = parser.parse_args()
    if not (browser := shutil.which("chromium")):
        print("SKIPPED: no notebook was run, as there is no `chromium` on PATH")
        return 0
    from playwright.sync_api import sync_playwright
    elsewhere = []
    def only_here(route):
        if urlsplit(route.request.url).hostname == "127.0.0.1": return route.continue_()
        elsewhere.append(route.request.url)
        route.abort()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        copy = copied(Path(folder))
        with jupyterlab(Path(folder), copy) as (base, token):
            page = p.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"]).new_page()
            page.set_viewport_size({"width": WIDTHS[0], "height": 900})
            page.route(lambda url: url.startswith("http"), only_here)
            page.goto(f"{base}/lab?token={token}")
            faults = sum(look(page, base, copy, name, args.shots) for name in args.names)
        others = git(copy, "status", "--porcelain").splitlines()
        strays = [line for line in others if not line.endswith(tuple(f"/{n}.ipynb" for n in args.names))]
    print(f"{len(args.names)} notebooks, {faults} faults; asked of other hosts: {elsewhere or 'nothing'}; "
          f"other files in the copy: {strays or 'unchanged'}")
    return bool(faults or strays)


if __name__ == "__main__": sys.exit(main())
