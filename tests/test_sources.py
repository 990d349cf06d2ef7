"""Half-downloaded data sets: each is an error that names the file, or the folder, and says what to do."""
import shutil
import pytest
import layouts
from sparsedm.sources import open_source

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
CONTENT = {   # layout → a file, and what is read when
    "classes": "train/n0/0.png", "hub": "data/train-0.parquet", "faces": "img_align_celeba/0.png",
    "told": "train2014/0.png", "rooms": "bedroom_train_lmdb/data.mdb", "flat": "0.png",
}
ABOUT = {"faces": "list_eval_partition.txt", "told": "annotations/captions_train2014.json"}
FILES = [*CONTENT.items(), *ABOUT.items()]
DAMAGE = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a pointer": lambda path: path.write_bytes(POINTER),
    "a web page": lambda path: path.write_bytes(b"<!DOCTYPE html><html></html>"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2]),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory): return layouts.lay(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("layout, file", FILES, ids=lambda x: x.split("/")[-1])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_left_of_a_download_is_named(whole, tmp_path, layout, file, damage):
    shutil.copytree(whole/layout, tmp_path/layout)
    path = tmp_path/layout/file
    DAMAGE[damage](path)
    with pytest.raises((ValueError, OSError)) as refused: open_source(f"toy-{layout}", size=8, path=tmp_path)[range(layouts.N)]
    said = str(refused.value)
    assert path.name in said or str(tmp_path/layout) in said, said   # what is gone may have no name, but a place
    assert "It is made here." in said and "\n" not in said, said   # how to get it


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_what_is_whole_is_read(whole, layout):
    assert open_source(f"toy-{layout}", size=8, path=whole)[range(layouts.N)].shape == (layouts.N, 3, 8, 8)
