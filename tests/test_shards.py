"""Shards across processes: written together, killed, on a full disk; and what is damaged afterwards."""
import os, random, resource, shutil, signal, subprocess, sys, time
import pytest, torch
from safetensors.torch import save_file
from sparsedm import shards as module
from sparsedm.checkpoints import save_tensors
from sparsedm.files import locked, read_sealed, write_sealed
from sparsedm.shards import open_shards, write_shards

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


# damage: an error that names the file, and says what to do

def cut(path): path.write_bytes(path.read_bytes()[:-50])
def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def resealed(path, **changes): # an index that somebody else might have written
    facts = {k: v for k, v in (read_sealed(path) | changes).items() if v is not None}
    write_sealed(path, facts)


def other_sums(path, value): resealed(path, sums={name: value for name in read_sealed(path)["sums"]})
SHARD, INDEX, AGAIN = "00002-of-00003.safetensors", "index.json", "write the shards again"
DAMAGES = {
    "a shard cut": (SHARD, cut, AGAIN), "a bit of a shard": (SHARD, flip, AGAIN), "no shard": (SHARD, os.remove, AGAIN),
    "an empty shard": (SHARD, lambda path: path.write_bytes(b""), AGAIN),
    "a shard as a link to itself": (SHARD, lambda path: (path.unlink(), path.symlink_to(path)), AGAIN),
    "a shard of safetensors alone": (SHARD, lambda path: save_file({"values": torch.ones(20, 1)}, path), AGAIN),
    "one shard in place of another": (SHARD, lambda path: shutil.copy(path.with_name(SHARD.replace("2", "1", 1)), path), AGAIN),
    "a shard of another set": ("00001-of-00007.safetensors", lambda path: save_tensors(path, {"a": torch.ones(2)}),
                               "take it away"),
    "an index cut": (INDEX, cut, "delete it"), "no index": (INDEX, os.remove, "no index of shards"),
    "an index without columns": (INDEX, lambda path: resealed(path, columns=None), AGAIN),
    "an index of more": (INDEX, lambda path: resealed(path, shards=4), AGAIN),
    "a count as text": (INDEX, lambda path: resealed(path, rows="60"), AGAIN),
    "no checksums": (INDEX, lambda path: resealed(path, sums={}), AGAIN),
    "empty checksums": (INDEX, lambda path: other_sums(path, ""), AGAIN),
    "checksums that are null": (INDEX, lambda path: other_sums(path, None), AGAIN),
    "a shard outside": (INDEX, lambda path: resealed(path, sums={"../x.safetensors": "0" * 64}), AGAIN),
    "an index that is a list": (INDEX, lambda path: path.write_text("[]"), "delete it"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    def rows(numbers): return dict(values=torch.tensor(numbers).float()[:, None])
    return write_shards(tmp_path_factory.mktemp("small")/"shards", 60, rows, {}, per_shard=20, progress=False)


@pytest.mark.parametrize("verify", (True, False))
@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named(small, tmp_path, what, verify):
    name, damage, remedy = DAMAGES[what]
    folder = shutil.copytree(small, tmp_path/"shards")
    damage(folder/name)
    if what == "a bit of a shard" and not verify: return   # which the job's first process looks for
    with pytest.raises((ValueError, FileNotFoundError)) as refused: open_shards(folder, verify=verify)
    said = str(refused.value)
    assert (name in said or name == INDEX and str(folder) in said) and remedy in said and "\n" not in said, said
