"""Toy data sets laid out as their publishers lay them out, to be opened, called wrongly and damaged."""
import io, json
import lmdb, numpy as np, pyarrow as pa
from PIL import Image
from pyarrow import parquet
from sparsedm.sources import SOURCES, Source, celeba, class_folders, coco, hub_files, image_folder, lsun

N = 4      # images of each
LAYOUTS = dict(classes=class_folders, hub=hub_files, faces=celeba, told=coco, rooms=lsun, flat=image_folder)


def picture(i, kind="PNG"): # its bytes
    file = io.BytesIO()
    Image.fromarray(np.full((12, 10, 3), 50 * i, np.uint8)).save(file, kind)
    return file.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def lay(folder):
    "All layouts below a folder, and a source toy-… for each."
    for i in range(N):
        put(folder/"classes"/"train"/f"n{i % 2}"/f"{i}.png", picture(i))
        put(folder/"faces"/"img_align_celeba"/f"{i}.png", picture(i))
        put(folder/"told"/"train2014"/f"{i}.png", picture(i))
        put(folder/"flat"/f"{i}.png", picture(i))
    put(folder/"faces"/"list_eval_partition.txt", "".join(f"{i}.png 0\n" for i in range(N)).encode())
    notes = dict(images=[dict(id=i, file_name=f"{i}.png") for i in range(N)],
                 annotations=[dict(id=i, image_id=i, caption=f"picture {i}") for i in range(N)])
    put(folder/"told"/"annotations"/"captions_train2014.json", json.dumps(notes).encode())
    (folder/"hub"/"data").mkdir(parents=True)
    rows = dict(image=[dict(bytes=picture(i), path="") for i in range(N)], label=[i % 2 for i in range(N)])
    parquet.write_table(pa.table(rows), folder/"hub"/"data"/"train-0.parquet", row_group_size=2)
    (folder/"rooms").mkdir()
    with lmdb.open(str(folder/"rooms"/"bedroom_train_lmdb"), map_size=2**20) as made, made.begin(write=True) as writing:
        for i in range(N): writing.put(f"key{i}".encode(), picture(i))
    for name, layout in LAYOUTS.items():
        SOURCES.add(Source(f"toy-{name}", layout, name, dict(train=N), "It is made here."))
    return folder
