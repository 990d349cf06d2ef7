"""Looks at every page of _site in Chromium, wide and narrow: links, pictures, formulas, hosts, overflow, search.

python site/check.py [FOLDER FOR SCREENSHOTS]"""
import functools, http.server, shutil, sys, threading
from pathlib import Path
from urllib.parse import unquote, urlsplit
from playwright.sync_api import sync_playwright

SITE = Path(__file__).resolve().parent.parent/"_site"
WIDTHS = (1440, 390)
SHOWN = ("index", "nbs/01_ste", "nbs/20_diffusion", "nbs/paper/sparsedm/fig3", "figures/demo/index",
         "figures/demo/claims", "api/sparsedm.ste", "search")
FACTS = """() => ({
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  images: [...document.images].map(i => [i.src, i.alt, i.naturalWidth]),
  formulas: document.querySelectorAll('math').length,
  empty: [...document.querySelectorAll('math')].filter(m =>
    !m.getBoundingClientRect().width || m.querySelector('merror')).length})"""
# what sticks out to the right, unless a box around it scrolls
WIDE = """() => { const own = e => getComputedStyle(e).overflowX, out = [], page = document.documentElement.clientWidth
  const boxed = e => e && e.tagName != 'BODY' && (['auto', 'scroll'].includes(own(e)) || boxed(e.parentElement))
  if (document.documentElement.scrollWidth > page) out.push(`the page: ${document.documentElement.scrollWidth}`)
  for (const e of document.querySelectorAll('article *'))
    if (e.getBoundingClientRect().right > page + 1 && !boxed(e.parentElement)) out.push(`${e.tagName} ${e.className}`)
  return out.slice(0, 3) }"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def look(page, base, path, faults):
    "Facts of a page; what is wrong with it alone goes to faults."
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.goto(f"{base}/{path}")
    facts = page.evaluate(FACTS)
    faults += [f"{path}: no text for {src}" for src, alt, _ in facts["images"] if not alt.strip()]
    faults += [f"{path}: {src} is not there" for src, _, width in facts["images"] if not width]
    if facts["empty"]: faults.append(f"{path}: {facts['empty']} formulas show nothing")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        faults += [f"{path} at {width} px: {out} is too wide" for out in page.evaluate(WIDE)]
    return facts


def broken(base, facts):
    "Links to pages, files and anchors of the site that are not there."
    for path, own in facts.items():
        for link in own["links"]:
            target, host = urlsplit(link), urlsplit(base).netloc
            if target.netloc != host: continue
            file = unquote(target.path).strip("/") or "index.html"
            if not (SITE/file).is_file(): yield f"{path}: no {file}"
            elif target.fragment and file in facts and unquote(target.fragment) not in facts[file]["ids"]:
                yield f"{path}: no #{unquote(target.fragment)} in {file}"


def search(page, base, words):
    "Pages found, in order."
    page.goto(f"{base}/search.html?q={words}")
    page.wait_for_function("document.querySelector('#search-results p.search-summary')?.textContent.match(/[0-9]/)")
    page.wait_for_timeout(1500)
    return [urlsplit(a.get_attribute("href")).path for a in page.locator("#search-results li > a").all()]


def main(shots):
    if not (browser := shutil.which("chromium")):
        print("SKIPPED: the site was not looked at, as there is no `chromium` on PATH")
        return 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, faults, elsewhere = f"http://127.0.0.1:{server.server_port}", [], []
    def only_here(route):
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None): return route.continue_()
        elsewhere.append(route.request.url)
        route.abort()
    with sync_playwright() as p:
        page = p.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"]).new_page()
        page.route("**/*", only_here)
        page.on("pageerror", lambda e: faults.append(f"{page.url}: {e}"))
        paths = sorted(f.relative_to(SITE).as_posix() for f in SITE.rglob("*.html") if "_static" not in f.parts)
        facts = {path: look(page, base, path, faults) for path in paths}
        found = search(page, base, "straight-through")
        for name in SHOWN if shots else ():
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                page.goto(f"{base}/{name}.html" + "?q=straight-through" * (name == "search"))
                page.wait_for_timeout(1500)
                page.screenshot(path=Path(shots)/f"{name.replace('/', '-')}-{width}.png")
    if "nbs/01_ste.html" not in " ".join(found): faults.append(f"search for straight-through: {found}")
    faults += [f"asks another host: {url}" for url in elsewhere] + list(broken(base, facts))
    count = lambda kind: sum(len(f[kind]) if kind != "formulas" else f[kind] for f in facts.values())
    print("\n".join([*faults, f"{len(facts)} pages, {count('links')} links, {count('images')} pictures, "
                     f"{count('formulas')} formulas; straight-through is found in {found[:3]}; {len(faults)} faults"]))
    return bool(faults)


sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
