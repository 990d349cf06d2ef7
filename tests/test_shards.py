"""Shards across processes: written together, killed, on a full disk."""
import os, random, resource, signal, subprocess, sys, time
import pytest, torch
from sparsedm import shards as module
from sparsedm.files import locked, read_sealed
from sparsedm.shards import open_shards

WRITER = """
import sys, time, torch
from sparsedm.shards import write_shards

def rows(numbers): # slow, so that writers meet
    time.sleep(.01)
    return dict(values=torch.tensor(numbers).float()[:, None].repeat(1, 500), labels=torch.tensor(numbers))

print("at work", flush=True)
write_shards(sys.argv[1], 400, rows, dict(made="numbers"), per_shard=20, batch=5, progress=False)
"""


def started(folder, **more):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", WRITER, folder], env=environment, **pipes, **more)


def at_work(writer):
    assert writer.stdout.readline() == "at work\n"


def check(folder):
    shards = open_shards(folder)
    assert shards[:][:, 7].tolist() == list(range(400)) and shards.labels.tolist() == list(range(400))
    left = [p.name for p in folder.iterdir() if p.suffix == ".tmp"]
    assert not left, left
    return read_sealed(folder/"index.json")["sums"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert started(folder).wait(120) == 0
    return check(folder)


def test_a_lone_writer_looks_at_each_shard_once_and_waits_for_none(tmp_path, monkeypatch):
    asked = []
    def noted(path, wait=True):
        asked.append((path.name, wait))
        return locked(path, wait=wait)

    monkeypatch.setattr(module, "locked", noted)
    module.write_shards(tmp_path, 50, lambda numbers: dict(values=torch.ones(len(numbers), 1)), {}, per_shard=20, progress=False)
    of_shards = [(f".{k:05}-of-00003.safetensors.lock", False) for k in range(3)]
    assert asked == [(".lock", True), *of_shards, (".lock", True)]


def test_three_writers_share_the_work_and_one_is_killed(tmp_path, expected):
    writers = [started(tmp_path/"shards") for _ in range(3)]
    at_work(writers[0])
    time.sleep(.1)
    writers[0].kill()
    assert [w.wait(120) for w in writers] == [-signal.SIGKILL, 0, 0]
    assert check(tmp_path/"shards") == expected


def test_killed_at_any_moment_it_goes_on(tmp_path, expected):
    folder, rng, kills = tmp_path/"shards", random.Random(0), 0
    while not (folder/"index.json").is_file():
        writer = started(folder)
        at_work(writer)
        time.sleep(rng.uniform(0, .8))
        writer.kill()
        kills += writer.wait() == -signal.SIGKILL
    assert kills and check(folder) == expected


def test_a_full_disk_leaves_nothing_half_written(tmp_path, expected):
    "A file may have 30,000 bytes, a shard 40,000: as on a disk that is full, nothing is left but what was whole."
    folder = tmp_path/"shards"
    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    writer = started(folder, preexec_fn=small)
    assert writer.wait(120) == 1
    assert "File too large" in writer.stderr.read()
    assert [p.name for p in folder.iterdir() if p.name[0] != "."] == ["recipe.json"]
    assert started(folder).wait(120) == 0
    assert check(folder) == expected
