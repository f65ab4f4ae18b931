"""Checkpoints as PyTorch lays them out, written by Python's own pickler with stand-in classes:
python3 tests/golden/make_files.py. Standard library only."""
import collections, io, os, pickle, struct, sys, types, zipfile

torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
sys.modules["torch"], sys.modules["torch._utils"] = torch, utils
torch._utils = utils


def make_class(name):
    setattr(torch, name, type(name, (), {"__module__": "torch"}))
    return getattr(torch, name)


Float, Long = make_class("FloatStorage"), make_class("LongStorage")


def _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks):
    raise NotImplementedError


_rebuild_tensor_v2.__module__ = "torch._utils"
utils._rebuild_tensor_v2 = _rebuild_tensor_v2


class Storage:
    def __init__(self, cls, key, code, values):
        self.cls, self.key, self.count = cls, key, len(values)
        self.data = struct.pack("<%d%s" % (len(values), code), *values)


class Tensor:
    def __init__(self, storage, offset, size, stride):
        self.args = (storage, offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return _rebuild_tensor_v2, self.args


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", obj.cls, obj.key, "cpu", obj.count)


def dumps(obj, protocol):
    out = io.BytesIO()
    Pickler(out, protocol).dump(obj)
    return out.getvalue()


weights = Storage(Float, "0", "f", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
steps = Storage(Long, "1", "q", [123456789012])
state = collections.OrderedDict([
    ("conv.weight", Tensor(weights, 0, (2, 3), (3, 1))),
    ("conv.bias", Tensor(weights, 3, (2,), (1,))),
    ("bn.num_batches_tracked", Tensor(steps, 0, (), ())),
])
top = {"model": state, "epoch": 90, "big": 1 << 40, "negative": -300, "best": 71.25, "done": True,
       "history": [0.5, None, ("a", "b", 3, 4), {}], "optimizer": {"state": {0: {"step": 5}}}}
here = os.path.dirname(os.path.abspath(__file__))
with zipfile.ZipFile(os.path.join(here, "pickle4.pth"), "w") as z:
    for name, data in (("data.pkl", dumps(top, 4)), ("byteorder", b"little"),
                       ("data/0", weights.data), ("data/1", steps.data), ("version", b"3\n")):
        info = zipfile.ZipInfo("model/" + name)
        info.compress_type = zipfile.ZIP_DEFLATED if name == "data.pkl" else zipfile.ZIP_STORED
        z.writestr(info, data)
with open(os.path.join(here, "pickle2_legacy.pth"), "wb") as f:
    for obj in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True,
                                               "type_sizes": {"short": 2, "int": 4, "long": 4}},
                top, ["1", "0"]):
        f.write(dumps(obj, 2))
    for s in (steps, weights):
        f.write(struct.pack("<q", s.count) + s.data)

for name, big in (("small.zip", False), ("small64.zip", True)):
    with zipfile.ZipFile(os.path.join(here, name), "w") as z:
        for entry, data, method in (("a.txt", b"x" * 1000, zipfile.ZIP_DEFLATED),
                                    ("d/b.bin", bytes(range(4)), zipfile.ZIP_STORED)):
            info = zipfile.ZipInfo(entry)
            info.compress_type = method
            with z.open(info, "w", force_zip64=big) as f:
                f.write(data)
        z.comment = b"" if big else b"a comment"
        if big:  # sizes beyond this limit go to 64-bit fields, so everything does
            zipfile.ZIP64_LIMIT = zipfile.ZIP_FILECOUNT_LIMIT = 0
