"""Attacks on sparsedm: `python tests/attack.py [calls] [bytes] [kills] [graph] [shards] [signals] [together] [disk] [--seed N]
[--times N]`.

What must hold: nothing wrong is accepted in silence, nothing damaged is believed, nothing that is interrupted is lost
or done twice, nobody is left working. It prints counts by class, and exits with 1 if something was silent or lost.
"""
import argparse, contextlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time, warnings
from collections import Counter
from pathlib import Path
import torch
import attack_calls

ROOT = Path(__file__).resolve().parent.parent
GOOD = ("clear", "harmless", "made again", "equal", "ended", "killed")   # outcomes that may be


def checkout(folder):
    "A copy with what the toy scale needs, and no records."
    left_out = shutil.ignore_patterns("records", "cifar10", "hub", "checkpoints", ".ipynb_checkpoints")
    for name in ("nbs", "data"): shutil.copytree(ROOT/name, folder/name, ignore=left_out)
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, folder/name)
    os.environ["SPARSEDM_ROOT"] = str(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder/"cache")
    return folder


def forked(work, *args):
    "A child that does it, and leaves by the back door."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            work(*args)
        code = 0
    finally: os._exit(code)


def digest(value):
    "What a reader got, as a text."
    from sparsedm.checkpoints import describe, tensors_sha
    if isinstance(value, torch.nn.Module): return f"{describe(value)} {tensors_sha(value.state_dict())}"
    if isinstance(value, torch.Tensor): return tensors_sha({"": value})
    if isinstance(value, tuple): return " ".join(map(digest, value))
    if isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values()): return tensors_sha(value)
    return json.dumps(value, sort_keys=True, default=str)


def toy_run(method="dense"):
    from sparsedm.run import make_run
    return make_run("smoke", method)


def readers(folder):
    "{kind: (file, how it is read)} of every kind of file that a number depends on."
    from sparsedm.checkpoints import kept_tensor, load_model, load_tensors, save_model
    from sparsedm.execute import do_run, floor
    from sparsedm.files import read_sealed, runs_dir, write_sealed
    from sparsedm.graph import make_plan, read_plan
    from sparsedm import latent
    from sparsedm.latent import small_autoencoder
    from sparsedm.metrics import evaluate
    from sparsedm.official import read_state
    from sparsedm.packing import load_packed, save_packed
    from sparsedm.records import load_trained, read_record, record_path, run_folder
    from sparsedm.shards import open_shards
    from sparsedm.ste import sparsify_
    from sparsedm.training import train
    dense, data = toy_run(), attack_calls.digits()
    do_run(dense)
    train(sparsify_(attack_calls.uvit(), "2:4", "improved"), data, attack_calls.config(), folder/"train", progress=False)
    save_model(attack_calls.uvit("sparse"), folder/"sparse.safetensors")
    save_packed(attack_calls.uvit("baked"), folder/"packed.safetensors")
    kept_tensor(folder/"kept.safetensors", lambda: torch.arange(50.))
    write_sealed(folder/"job.json", dict(scale="smoke", batches=make_plan([toy_run("ours")], 1), drawing=[]))
    shards, official = attack_calls.write_toy(folder/"shards"), folder/"nnet.pth"
    torch.save(attack_calls.uvit().state_dict(), official)
    extractor = folder/"data"/"extractors"/"digits-cnn.safetensors"
    def measured(): return evaluate(data.images[:20], data.images[20:60], metrics=("fid",))["fid"]
    def codec():
        latent._small.cache_clear()
        return small_autoencoder("digits-latent").net
    return {
        "checkpoint of a training": (folder/"train"/"checkpoint.safetensors", load_tensors),
        "sparse model": (folder/"sparse.safetensors", load_model),
        "packed model": (folder/"packed.safetensors", load_packed),
        "trained model of a run": (run_folder(dense)/"model.safetensors", lambda path: load_trained(dense)),
        "tensor that is kept": (folder/"kept.safetensors", lambda path: kept_tensor(path, lambda: torch.arange(50.))),
        "record": (record_path(dense), lambda path: read_record(dense)),
        "floor": (next(runs_dir("smoke").glob("floor-*.json")), lambda path: floor(dense)),
        "job": (folder/"job.json", lambda path: [sorted(b) for b in read_plan(path)]),
        "shard": (shards/"00001-of-00003.safetensors", lambda path: open_shards(path.parent)[:]),
        "index of shards": (shards/"index.json", lambda path: open_shards(path.parent)[:]),
        "published weights": (official, read_state),
        "extractor": (extractor, lambda path: measured()),
        "codec": (folder/"data"/"codecs"/"digits-latent.safetensors", lambda path: codec()),
        "sealed JSON": (folder/"job.json", read_sealed),
    }


def damaged(content, rng):
    "Bytes with one fault."
    kind, place = rng.choice(("bit", "byte", "cut", "more", "zeros")), rng.randrange(len(content))
    if kind == "bit": return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1:]
    if kind == "byte": return content[:place] + bytes([rng.randrange(256)]) + content[place + 1:]
    if kind == "cut": return content[:place]
    if kind == "more": return content + bytes([rng.randrange(256)])
    return content[:place] + bytes(min(16, len(content) - place)) + content[place + 16:]


def attack_bytes(rng, times):
    "One fault in a file, mostly in its head, where little things say much."
    counts = Counter()
    with tempfile.TemporaryDirectory() as tmp:
        for kind, (path, read) in readers(checkout(Path(tmp)/"root")).items():
            good, expected = path.read_bytes(), digest(read(path))
            head = min(len(good), 6000)
            for _ in range(times):
                bad = damaged(good[:head], rng) + good[head:] if rng.random() < .7 else damaged(good, rng)
                path.write_bytes(bad)
                counts[how_read(path, read, expected, bad == good, kind)] += 1
                path.write_bytes(good)
    return counts


def how_read(path, read, expected, same, kind):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try: found = digest(read(path))
        except (ValueError, OSError, LookupError) as e:
            if path.name in str(e): return "clear"
            print(f"unclear  {kind}: {type(e).__name__}: {str(e)[:150]}")
            return "unclear"
        except Exception as e:
            print(f"unclear  {kind}: {type(e).__name__}: {str(e)[:150]}")
            return "unclear"
    if found == expected: return "harmless" if same or not told else "made again"
    print(f"silent   {kind}")
    return "silent"


def attack_kills(rng, times):
    "SIGKILL at a random moment of a run, again and again until it is done; the result is that of an unbroken run."
    from sparsedm.execute import do_run
    from sparsedm.records import record_path
    counts, started = Counter(), 0
    with finished_run() as (run, whole, seconds):
        while started < times:
            forget(run)
            while not record_path(run).is_file():
                pid = forked(do_run, run)
                started += 1
                time.sleep(rng.uniform(0, 1.2 * seconds))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                if started % 10 == 0: do_run(run)   # and on from there without a kill
            counts["equal" if result(run) == whole else "lost"] += 1
        counts["killed"] = started
    return counts


SMALL_GRAPH = [sys.executable, "-m", "sparsedm.experiments", "smoke", "--only", "table1"]


def attack_graph(rng, times):
    "SIGKILL to the whole command at a random moment, again and again until its table is there; all numbers are the same."
    counts, started = Counter(), 0
    with tempfile.TemporaryDirectory() as tmp:
        folder = checkout(Path(tmp)/"root")
        began = time.monotonic()
        subprocess.run(SMALL_GRAPH, cwd=folder, check=True, capture_output=True)
        whole, seconds = numbers_of(folder), time.monotonic() - began
        while started < times:
            for made in ("runs", "figures", "data/records"): shutil.rmtree(folder/made)
            while not (folder/"figures"/"smoke"/"table1.png").is_file():
                begun = subprocess.Popen(SMALL_GRAPH, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)
                started += 1
                with contextlib.suppress(subprocess.TimeoutExpired): begun.wait(rng.uniform(0, 1.2 * seconds))
                with contextlib.suppress(ProcessLookupError): os.killpg(begun.pid, signal.SIGKILL)
                begun.wait()
            subprocess.run(SMALL_GRAPH, cwd=folder, check=True, capture_output=True)
            counts["equal" if numbers_of(folder) == whole else "lost"] += 1
    counts["killed"] = started
    return counts


def numbers_of(folder):
    "Of a graph that is done: what must not depend on interruptions."
    records = {p.name: json.loads(p.read_text()) for p in (folder/"data"/"records"/"smoke").glob("*.json")}
    found = {name: [r[k] for k in ("metrics", "loss", "loss_by_t", "curve")] for name, r in records.items()}
    return found, (folder/"figures"/"smoke"/"table1.csv").read_text()


def attack_shards(rng, times):
    "SIGKILL to one of two writers of one folder of shards, until it is whole; it is that of an unbroken one."
    import test_shards
    counts, started = Counter(), 0
    with tempfile.TemporaryDirectory() as tmp:
        test_shards.started(Path(tmp)/"whole").wait()
        whole = test_shards.check(Path(tmp)/"whole")
        while started < times:
            folder = Path(tmp)/f"shards{started}"
            while not (folder/"index.json").is_file():
                writers = [test_shards.started(folder) for _ in range(2)]
                started += 1
                test_shards.at_work(writers[0])
                time.sleep(rng.uniform(0, .6))
                for w in writers: w.kill()
                for w in writers: w.wait()
            counts["equal" if test_shards.check(folder) == whole else "lost"] += 1
    counts["killed"] = started
    return counts


@contextlib.contextmanager
def finished_run():
    "A run that is done in a copy, its result, and the seconds it took."
    from sparsedm.execute import do_run
    with tempfile.TemporaryDirectory() as tmp:
        checkout(Path(tmp)/"root")
        do_run(toy_run())
        began, run = time.monotonic(), toy_run("ours")
        do_run(run)
        yield run, result(run), time.monotonic() - began


def forget(run):
    from sparsedm.records import record_path, run_folder
    shutil.rmtree(run_folder(run))
    record_path(run).unlink()


def result(run):
    "What must not depend on interruptions."
    from sparsedm.records import load_trained, read_record
    record = read_record(run)
    return digest(load_trained(run)), record["metrics"]["fid"], record["loss"], record["flips"], record["curve"]


def attack_signals(rng, times):
    "SIGINT and SIGTERM to the command, its group, or one of its children, at a random moment."
    import psutil
    counts = Counter()
    with tempfile.TemporaryDirectory() as tmp:
        folder = checkout(Path(tmp)/"a root")
        for _ in range(times):
            number, target = rng.choice((signal.SIGINT, signal.SIGTERM)), rng.choice(("command", "group", "child"))
            begun = subprocess.Popen(SMALL_GRAPH, cwd=folder, start_new_session=True, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True)
            time.sleep(rng.uniform(1, 25))
            family = [psutil.Process(begun.pid), *psutil.Process(begun.pid).children(recursive=True)]
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if target == "command": begun.send_signal(number)
                if target == "group": os.killpg(begun.pid, number)
                if target == "child": rng.choice(family[1:] or family).send_signal(number)
            counts[how_ended(begun, number, target, folder)] += 1
    return counts


def how_ended(begun, number, target, folder):
    import psutil
    try: said, _ = begun.communicate(timeout=60 if target == "child" else 12)
    except subprocess.TimeoutExpired:
        for p in psutil.Process(begun.pid).children(recursive=True): p.kill()
        begun.kill()
        print(f"late     {number.name} to {target}")
        return "late"
    left = [p for p in psutil.process_iter() if _is_in(p, folder)]
    for p in left: p.kill()
    if left:
        print(f"orphan   {number.name} to {target}: {len(left)}")
        return "orphan"
    expected = (0, 1, 130, 143) if target == "child" else (0, 128 + number)
    if begun.returncode not in (*expected, -number) or "Traceback" in said:
        print(f"unclear  {number.name} to {target}: {begun.returncode} {said[-300:]!r}")
        return "unclear"
    return "ended"


def _is_in(p, folder):
    import psutil
    with contextlib.suppress(psutil.Error):
        return p.pid != os.getpid() and p.environ().get("SPARSEDM_ROOT") == str(folder) and p.status() != "zombie"
    return False


def attack_together(rng, times):
    "Several processes are asked for the same run."
    from sparsedm.execute import do_run
    counts = Counter()
    with finished_run() as (run, whole, _):
        for _ in range(times):
            forget(run)
            pids = [forked(do_run, run) for _ in range(3)]
            codes = [os.waitpid(pid, 0)[1] for pid in pids]
            counts["equal" if not any(codes) and result(run) == whole else "lost"] += 1
    return counts


def attack_disk(rng, times):
    "No file may grow beyond a random size: whatever fails is named, and what was there stays."
    from sparsedm.execute import do_run
    from sparsedm.records import run_folder, why_missing
    counts = Counter()
    def limited(run, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        do_run(run)
    with finished_run() as (run, whole, _):
        for _ in range(times):
            forget(run)
            os.waitpid(forked(limited, run, rng.choice((100, 3_000, 20_000, 100_000, 400_000))), 0)
            torn = list(run_folder(run).glob(".*.tmp")) if run_folder(run).exists() else []
            why = why_missing(run)
            do_run(run)
            named = not why or "File too large" in why
            fine = result(run) == whole and not torn and named
            if not fine: print(f"lost     {[p.name for p in torn]} {why[-200:]!r}")
            counts["equal" if fine else "lost"] += 1
    return counts


def attack_calls_(rng, times):
    with tempfile.TemporaryDirectory() as tmp:
        checkout(Path(tmp)/"root")
        return attack_calls.counts()


ATTACKS = dict(calls=attack_calls_, bytes=attack_bytes, kills=attack_kills, graph=attack_graph, shards=attack_shards,
               signals=attack_signals, together=attack_together, disk=attack_disk)
USUAL = dict(calls=1, bytes=200, kills=200, graph=20, shards=20, signals=20, together=5, disk=10)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=[*ATTACKS, []], default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=0, help="of each; 0: as usual")
    given, bad = parser.parse_args(), 0
    torch.set_num_threads(1)
    for name in given.which or ATTACKS:
        counts = ATTACKS[name](random.Random(given.seed), given.times or USUAL[name])
        print(f"{name}: {', '.join(f'{n} {how}' for how, n in counts.items())}", flush=True)
        bad += sum(n for how, n in counts.items() if how not in (*GOOD, "allowed", "unclear"))
    sys.exit(bool(bad))


if __name__ == "__main__": main()
