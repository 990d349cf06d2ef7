"""Names that become files: nothing leads out of the root and the cache, and each wrong one is refused in one clear line."""
import sys
from dataclasses import replace
from pathlib import Path
import pytest
from sparsedm import __main__ as command, experiments, prepare
from sparsedm.declare import Dataset, Method, Scale, Table, SCALES
from sparsedm.files import data_dir, figures_dir, find_root, records_dir, remember, runs_dir
from sparsedm.prepare import PREPARED, Prepared, folder_of
from sparsedm.run import make_run
from sparsedm.sources import Source

NAMES = ("../x", "/x", "a/b", "..", "a\nb", "a\0b", "x" * 300)
SMOKE = SCALES.named("smoke")
RUN = make_run("smoke", "ours")
BECOMES_A_FILE = {
    "method": lambda name: Method(name, "label"),
    "scale": lambda name: replace(SMOKE, name=name),
    "net of a scale": lambda name: Scale("tiny", "digits", {name: SMOKE.nets["uvit"]}, SMOKE.measure),
    "table": lambda name: Table(name, "md"),
    "paper": lambda name: Table("table", "md", paper=name),
    "data set": lambda name: Dataset(name, print),
    "backbone of a run": lambda name: replace(RUN, backbone=name),
    "prepared data set": lambda name: Prepared(name, "celeba", 64, dict(train="train")),
    "split": lambda name: Prepared("toy", "celeba", 64, {name: "train"}),
    "folder of a split": lambda name: folder_of(PREPARED["celeba-64"], name),
    "folder of a source": lambda name: Source("toy", print, name, dict(train=1), "how"),
}
IS_SHORT = {"start of a run": lambda name: replace(RUN, start=name), "teacher of a run": lambda name: replace(RUN, teacher=name),
            "records": records_dir, "runs": runs_dir, "figures": figures_dir, "up to date": lambda name: remember(name, "said")}


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A root in a folder where nothing else may appear, and the way to look."
    folder = tmp_path/"room"/"root"
    folder.mkdir(parents=True)
    for name in ("Snakefile", "settings.ini"): (folder/name).touch()
    monkeypatch.setenv("SPARSEDM_ROOT", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    monkeypatch.delenv("SPARSEDM_DATA", raising=False)
    monkeypatch.chdir(folder)
    before = set(tmp_path.rglob("*"))
    yield folder
    assert set(tmp_path.rglob("*")) == before and not Path("/x").exists()


def one_line(said, name):
    "It shows what was given, and is one line, whatever that was."
    assert "\n" not in said.strip() and (name[:9] in said or repr(name)[1:9] in said), said


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:9])
def test_a_name_leads_nowhere(root, name):
    for what, make in (BECOMES_A_FILE | (IS_SHORT if len(name) < 99 else {})).items():
        with pytest.raises(ValueError) as refused: make(name)
        one_line(str(refused.value), name)


def said_by(main, arguments, capsys, monkeypatch):
    "The last line that a command prints when it refuses."
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    try: code = main()
    except SystemExit as ended: code = ended.code
    assert code and code != "0"
    said = capsys.readouterr().err
    if isinstance(code, str): return code
    return said.strip() if "usage:" not in said else said[said.index("error:"):].strip()


@pytest.mark.parametrize("name", [name for name in NAMES if "\0" not in name], ids=lambda name: repr(name)[:9])
def test_a_command_refuses_it_in_one_line(root, name, capsys, monkeypatch):
    asked = {
        "--split": (prepare.main, ["celeba-64", "--split", name]), "--path": (prepare.main, ["celeba-64", "--path", name]),
        "name": (prepare.main, [name]), "scale": (experiments.main, [name]),
        "--only": (experiments.main, ["smoke", "--only", name]),
        "--to": (command.main, ["pack", "nowhere.safetensors", "--to", f"{name}/x.safetensors"]),
    }
    if name != "a/b": asked["path"] = (command.main, ["report", name])   # which the Hub would be asked for
    for what, (main, arguments) in asked.items():
        said = said_by(main, arguments, capsys, monkeypatch)
        assert "\n" not in said and "Traceback" not in said, (what, said)
        if what != "--to": one_line(said, name)


@pytest.mark.parametrize("given", ["/nowhere", "a\nb", "x" * 300, "~nosuchuser/x"], ids=lambda name: repr(name)[:9])
def test_a_wrong_root_or_data_folder_is_named(root, given, monkeypatch):
    with pytest.raises((ValueError, OSError)) as refused:
        monkeypatch.setenv("SPARSEDM_ROOT", given)
        find_root()
    one_line(str(refused.value), given)
    monkeypatch.setenv("SPARSEDM_ROOT", str(root))
    with pytest.raises((ValueError, OSError)) as refused:
        monkeypatch.setenv("SPARSEDM_DATA", given)
        prepare.prepare("celeba-64", path=None)
    one_line(str(refused.value), given)
    if "\n" not in given: assert data_dir().name == Path(given).name
