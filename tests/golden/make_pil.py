"""The operations of RandAugment and colour jitter as PIL computes them: python3 tests/golden/make_pil.py.
Needs Pillow 9.4 or newer and numpy.

Writes pil_ops.safetensors beside itself: bytes, (H, W, C), C is 1 or 3.
  rgb, grey, flat     pictures: a noisy gradient, the same grey, two values and a constant channel
  rgb/Rotate/-17.5    what the operation makes of the picture with that number (unused by some)
Shapes that leave the picture are filled with (124, 116, 104)."""
import json, os, struct
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)


def affine(a):
    def run(im, v):
        w, h = im.size
        fill = FILL if im.mode == 'RGB' else FILL[0]
        return im.transform(im.size, Image.AFFINE, a(v, w, h), resample=Image.BILINEAR, fillcolor=fill)
    return run


def add(im, v):
    table = [min(255, i + int(v)) if i < 128 else i for i in range(256)]
    return im.point(table * len(im.getbands()))


def rotate(im, v):
    return im.rotate(v, resample=Image.BILINEAR, fillcolor=FILL if im.mode == 'RGB' else FILL[0])


FACTORS = [0.1, 0.55, 0.9, 1.0, 1.37, 1.9]
OPS = [
    ('AutoContrast', lambda im, v: ImageOps.autocontrast(im), [0]),
    ('Equalize', lambda im, v: ImageOps.equalize(im), [0]),
    ('Invert', lambda im, v: ImageOps.invert(im), [0]),
    ('Rotate', rotate, [-27.5, -3.1, 0, 8, 30]),
    ('Posterize', lambda im, v: ImageOps.posterize(im, int(v)), [0, 1, 3, 4]),
    ('Solarize', lambda im, v: ImageOps.solarize(im, v), [0, 26, 128, 256]),
    ('SolarizeAdd', add, [0, 55, 110]),
    ('Color', lambda im, v: ImageEnhance.Color(im).enhance(v), FACTORS),
    ('Contrast', lambda im, v: ImageEnhance.Contrast(im).enhance(v), FACTORS),
    ('Brightness', lambda im, v: ImageEnhance.Brightness(im).enhance(v), FACTORS),
    ('Sharpness', lambda im, v: ImageEnhance.Sharpness(im).enhance(v), FACTORS),
    ('ShearX', affine(lambda v, w, h: (1, v, 0, 0, 1, 0)), [-0.27, 0.11, 0.3]),
    ('ShearY', affine(lambda v, w, h: (1, 0, 0, v, 1, 0)), [-0.3, 0.02, 0.27]),
    ('TranslateX', affine(lambda v, w, h: (1, 0, v * w, 0, 1, 0)), [-0.405, 0.125, 0.45]),
    ('TranslateY', affine(lambda v, w, h: (1, 0, 0, 0, 1, v * h)), [-0.45, 0.03, 0.2]),
]

rng = np.random.default_rng(1)
y, x = np.mgrid[0:21, 0:26]
ramp = np.stack([40 + 6 * x, 20 + 8 * y, 230 - 5 * (x + y) // 2], -1)
rgb = np.clip(ramp + rng.integers(-25, 26, ramp.shape), 10, 240).astype(np.uint8)
flat = np.where((x // 3 + y // 4)[..., None] % 2, 200, 90) * [1, 1, 0] + [0, 0, 77]
tensors = {'rgb': rgb, 'grey': rgb[..., 1:2], 'flat': flat.astype(np.uint8)}
for name in list(tensors):
    a = tensors[name]
    im = Image.fromarray(a if a.shape[-1] == 3 else a[..., 0])
    for op, run, numbers in OPS:
        for v in numbers:
            out = np.asarray(run(im, v))
            tensors['%s/%s/%r' % (name, op, v)] = out.reshape(a.shape)

header, data = {}, b''
for name, t in tensors.items():
    header[name] = {'dtype': 'U8', 'shape': list(t.shape), 'data_offsets': [len(data), len(data) + t.size]}
    data += np.ascontiguousarray(t).tobytes()
text = json.dumps(header, separators=(',', ':')).encode()
text += b' ' * (-len(text) % 8)
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'pil_ops.safetensors')
with open(path, 'wb') as f:
    f.write(struct.pack('<Q', len(text)) + text + data)
print(os.path.basename(path), len(tensors), 8 + len(text) + len(data))
