"""Sparse diffusion models: masks, estimators, transfer, fast sampling. The dozen names that people use are imported when they are first used."""
__version__ = "0.1.0"

import importlib, sys

_HERE = {   # name: the module it lives in
    "sparsify_": "ste", "bake_": "ste", "sparsity_report": "ste", "add_masked_decay_": "ste",
    "sparsify_like_": "like", "sparsify_zeros_": "like",
    "transfer_loss": "transfer", "one_shot_": "one_shot",
    "accelerate_": "accelerate", "explain": "accelerate", "save_packed": "packing", "load_packed": "packing",
    "build_model": "models", "sample": "diffusion", "train": "training", "TrainConfig": "training",
    "save_model": "checkpoints", "load_model": "checkpoints", "count_macs": "macs", "evaluate": "metrics",
}
_MOVED = {   # modules of version 0.1 whose name does not fit any more
    "sparsedm.sampling": "sparsedm.accelerate (accelerate_, parity), sparsedm.gpu (probe) and sparsedm.packing (pack, save_packed, load_packed)",
    "sparsedm.baselines": "sparsedm.one_shot, sparsedm.progressive and sparsedm.diff_pruning",
}


__all__ = list(_HERE)


def __getattr__(name):
    if name in _HERE: return getattr(importlib.import_module(f"sparsedm.{_HERE[name]}"), name)
    raise AttributeError(f"module 'sparsedm' has no attribute {name!r}; it has: {', '.join(sorted(_HERE))}")


def __dir__(): return sorted([*globals(), *_HERE])


class _Moved:
    "Says where an old module went; asked only for modules that nobody else finds."
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in _MOVED: raise ModuleNotFoundError(f"{name} is now {_MOVED[name]}", name=name)


sys.meta_path.append(_Moved)
