"""A fixed part of the attacks of attack.py, a minute long: nothing silent, nothing lost, nobody left working."""
import os, random, signal, subprocess, sys, time
import pytest, torch
import attack, attack_calls

FAULTS = 12      # in each kind of file
EVERY = 5        # one in so many wrong calls; `python tests/attack.py calls` makes them all


@pytest.fixture(scope="module", autouse=True)
def as_it_was():
    "The environment and the threads, which the attacks set."
    before, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(threads)


def none_but(counts, *allowed):
    "Nothing ended in another way."
    assert sum(counts.values()) and not {how: n for how, n in counts.items() if how not in allowed}, dict(counts)


def test_wrong_calls_are_refused(tmp_path):
    attack.checkout(tmp_path)
    none_but(attack_calls.counts(EVERY), "clear", "allowed", "unclear")


def test_damaged_bytes_are_noticed():
    none_but(attack.attack_bytes(random.Random(1), FAULTS), "clear", "harmless", "made again", "unclear")


def test_a_killed_training_ends_as_an_unbroken_one():
    none_but(attack.attack_kills(random.Random(2), 3), "equal", "killed")


def test_sigterm_leaves_nobody_working(tmp_path):
    "To a graph whose first batch has begun."
    folder = attack.checkout(tmp_path/"a root")
    command = [sys.executable, "-m", "sparsedm.experiments", "smoke", "--only", "table1"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    begun, deadline = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes), time.monotonic() + 60
    while not list(folder.glob("runs/smoke/*/.lock")) and time.monotonic() < deadline: time.sleep(.1)
    begun.send_signal(signal.SIGTERM)
    assert attack.how_ended(begun, signal.SIGTERM, "command", folder) == "ended"
    assert begun.returncode == 128 + signal.SIGTERM
