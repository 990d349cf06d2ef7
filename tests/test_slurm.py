"""A real Slurm on this machine: jobs go through its queue, and one that is cancelled is queued again and goes on."""
import json, os, pwd, shutil, signal, socket, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
CONF = Path("/etc/slurm/slurm.conf")   # jobs look nowhere else
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
SLURM = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=30
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
PROFILE = """
executor: slurm
jobs: 2
retries: 3
latency-wait: 20
slurm-no-account: true
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 2
seconds-between-status-checks: 3
default-resources:
  slurm_partition: main
  runtime: 20
  mem_mb: 1000
"""
SLOW = """
from ..declare import SCALES, Measure, Net, Recipe, Scale
from . import sparsedm
NAMED_HERE = (sparsedm,)
recipe = dict(lr=2e-3, warmup=10, ema=.9)
SCALES.add(Scale("slow", data="digits-split", tables=("fig1",), measure=Measure("digits-cnn", 24, "dpm-solver", 4),
                 nets=dict(uvit=Net("smoke", Recipe(2500, 16, **recipe), Recipe(6, 8, **recipe)))))
"""


def said(*command, **how):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, **how).stdout


def wait_until(true, seconds, what):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(.5)
    return found


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing: pytest.skip(f"needs a Slurm of its own: {', '.join(missing)} not found (Debian: slurm-wlm and munge)")
    if not find_spec("snakemake_executor_plugin_slurm"): pytest.skip('needs Snakemake\'s plugin: pip install -e ".[slurm]"')
    if os.getuid(): pytest.skip("needs a Slurm of its own, which only root can start")
    if CONF.exists(): pytest.skip(f"{CONF} is somebody's; the test starts a Slurm of its own")
    folder, started = tmp_path_factory.mktemp("slurm"), []
    for name in ("state", "spool"): (folder/name).mkdir()
    munge = pwd.getpwnam("munge")
    for name in ("run", "log", "lib"):
        (place := Path("/var" if name != "run" else "/")/name/"munge").mkdir(parents=True, exist_ok=True)
        os.chown(place, munge.pw_uid, munge.pw_gid)
    Path("/run/munge").chmod(0o755)
    try:
        started.append(subprocess.Popen(["munged", "--foreground"], user="munge", group="munge", stderr=subprocess.DEVNULL))
        CONF.write_text(SLURM.format(host=socket.gethostname(), folder=folder))
        wait_until(lambda: Path("/run/munge/munge.socket.2").exists(), 20, "munge")
        started += [subprocess.Popen([name, "-D"], stderr=subprocess.DEVNULL) for name in ("slurmctld", "slurmd")]
        asked = dict(args=["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
        wait_until(lambda: "idle" in subprocess.run(**asked).stdout, 60, "the node")
        yield folder
    finally:
        subprocess.run(["scancel", "--user", "root"], capture_output=True)
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        CONF.unlink(missing_ok=True)


@pytest.fixture
def checkout(tmp_path):
    "The working tree, with a scale whose first run takes a while, and a profile for this Slurm."
    repo = tmp_path/"repo"
    files = said("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).split("\n")
    for name in filter(None, files):
        if name.startswith(("data/records", "data/checkpoints", "figures")) or not (ROOT/name).is_file(): continue
        (repo/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, repo/name)
    (repo/"sparsedm"/"papers"/"slow.py").write_text(SLOW)
    (tmp_path/"profile").mkdir()
    (tmp_path/"profile"/"config.yaml").write_text(PROFILE)
    return repo


def start(repo):
    environment = {**os.environ, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sparsedm.experiments", "slow", "--profile", str(repo.parent/"profile")]
    return subprocess.Popen(command, cwd=repo, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def running(): return said("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()


def test_a_cancelled_job_is_queued_again_and_goes_on_and_an_interrupt_empties_the_queue(slurm, checkout):
    begun = lambda: list(checkout.glob("runs/slow/dense-*/checkpoint.safetensors"))
    driver = start(checkout)
    wait_until(lambda: begun() or driver.poll() is not None, 240, "a checkpoint")
    assert driver.poll() is None, driver.communicate()[0][-3000:]
    first, = running()
    said("scancel", first)
    again = wait_until(lambda: [job for job in running() if job != first], 120, "the job to be queued again")
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130 and "start again to go on" in output, output[-3000:]
    wait_until(lambda: not running(), 60, f"job {again} to end")

    checkpoint, = begun()
    step = json.loads(said(sys.executable, "-c", "import json, sys; from sparsedm.checkpoints import load_tensors; "
                           "print(json.dumps(load_tensors(sys.argv[1])[1]['step']))", str(checkpoint), cwd=checkout))
    assert 0 < step < 2500
    driver = start(checkout)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output[-3000:]
    assert len(list(checkout.glob("data/records/slow/*.json"))) == 2 and (checkout/"figures"/"slow"/"fig1.png").is_file()
    assert not begun()
