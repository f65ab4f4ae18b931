"""torch_nets.py FOLDER CASE=C,H,W,CLASSES[,head]…: PyTorch on the networks that tests/test_torch.c left in
FOLDER. CASE.model holds the parameters. CASE.out becomes images x, distributions target, logits in
evaluation mode (y), the loss of training mode, and per parameter its gradient (NAME:grad) or, of a
running statistic, its value after the training forward (NAME:after). All in double, rounded at the end.

A value that rounding moves across the kink of a ReLU changes every gradient below by far more than
rounding does, and so does a max-pool that takes another pixel. Hence biases of norms are moved, as
little as it takes, until no value is near a kink (CASE.out has them as NAME), and images are drawn
until no pool has two candidates. What is left is smooth. With `head` all that is left out, and what
is below the linear layers needs no gradients.

The networks are bench/peers/models.py's or made of its units; parameters are matched in the order of
layers, because there they have no names."""
import json, os, struct, sys
import torch
from torch import nn
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '../bench/peers'))
import models
from models import Residual, head, unit


def resnet50(classes):
    layers, i = unit(3, 64, 7, 2) + [nn.MaxPool2d(3, 2, 1)], 64
    for stage, repeat in enumerate((3, 4, 6, 3)):
        for n in range(repeat):
            mid, o, stride = 64 << stage, 256 << stage, 2 if stage and not n else 1
            skip = None if n else nn.Sequential(*unit(i, o, 1, stride, act=None))
            layers.append(Residual(unit(i, mid, 1) + unit(mid, mid, 3, stride) + unit(mid, o, 1, act=None), skip))
            i = o
    return nn.Sequential(*layers, *head(i, classes))


def large_head(i, classes):
    return [nn.Flatten(), nn.Linear(i * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, classes)]


def vgg(table, classes, head=head):
    layers, i = [], 3
    for o, repeat in table:
        for _ in range(repeat):
            layers += unit(i, o, 3, bias=True)
            i = o
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, *head(i, classes))


CASES = {
    'resnet20': lambda n: models.resnet((3, 3, 3), 16, True, n),
    'resnet56': lambda n: models.resnet((9, 9, 9), 16, True, n),
    'resnet18': lambda n: models.resnet((2, 2, 2, 2), 64, False, n),
    'resnet34': lambda n: models.resnet((3, 4, 6, 3), 64, False, n),
    'resnet50': resnet50,
    'mobilenetv2': lambda n: models.mobilenetv2(1, False, n),
    'mobilenetv2_small_1.4': lambda n: models.mobilenetv2(1.4, True, n),
    'vgg8_bn': lambda n: vgg(((32, 2), (64, 2), (128, 3)), n),
    'vgg19_bn': lambda n: vgg(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), n),
    'vgg19_bn_224': lambda n: vgg(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), n, large_head),
}


def read(path):
    with open(path, 'rb') as f:
        raw = f.read()
    n, = struct.unpack_from('<Q', raw)
    tensors = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name != '__metadata__':
            a, b = t['data_offsets']
            flat = torch.frombuffer(bytearray(raw[8 + n + a:8 + n + b]), dtype=torch.float32)
            tensors[name] = flat.reshape(t['shape']).double()
    return tensors


def write(path, tensors):
    header, at, data = {}, 0, []
    for name, t in tensors.items():
        data.append(t.detach().float().contiguous().numpy().tobytes())
        header[name] = {'dtype': 'F32', 'shape': list(t.shape), 'data_offsets': [at, at + len(data[-1])]}
        at += len(data[-1])
    text = json.dumps(header).encode()
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(text)) + text + b''.join(data))


def load(net, tensors):
    """Fill net in the order of layers; name of the parameter → the network's tensor."""
    here = [t for m in net.modules() for kind in (m._parameters, m._buffers) for t in kind.values()
            if t is not None and t.dim()]              # step counters of norms are scalars
    assert len(here) == len(tensors), (len(here), len(tensors))
    with torch.no_grad():
        for t, (name, value) in zip(here, tensors.items()):
            assert t.shape == value.shape, (name, t.shape, value.shape)
            t.copy_(value)
    return dict(zip(tensors, here))


BATCH = 4
KINKS = {nn.ReLU: (0.0,), nn.ReLU6: (0.0, 6.0)}
MARGIN, POOL_MARGIN = 1e-4, 2e-5                     # of the values' spread; floats are off by 1e-6 or so


def clear_kinks(net, x):
    """Move biases of norms so that no ReLU sees a value close to its kinks. False: a max-pool has a
    window with two values that are too much alike."""
    norms, alike = [], []                            # norms that have run

    def clear(relu, given):
        z, bias = given[0].clone(), norms[-1].bias
        margin = MARGIN * z.std().item()
        near = lambda v: min((v - kink).abs().min().item() for kink in KINKS[type(relu)]) < margin
        for c in range(z.shape[1]):
            step, value = 0, bias[c].item()
            while near(z[:, c]):
                step += 1
                to = torch.tensor(value + margin * (-step if step % 2 else step)).float().item()
                z[:, c] += to - bias[c].item()
                bias[c] = to
        return (z,)

    def look(pool, given):
        k, s, p = pool.kernel_size, pool.stride, pool.padding
        z = nn.functional.pad(given[0], (p, p, p, p)).unfold(2, k, s).unfold(3, k, s)
        first, second = z.flatten(4).topk(2).values.unbind(4)
        alike.append(((first - second < POOL_MARGIN * given[0].std()) & (first > second)).any().item())

    every = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [m.register_forward_hook(lambda norm, *_: norms.append(norm)) for m in every]
    hooks += [m.register_forward_pre_hook(clear) for m in net.modules() if type(m) in KINKS]
    hooks += [m.register_forward_pre_hook(look) for m in net.modules() if isinstance(m, nn.MaxPool2d)]
    for norm in every:
        norm.momentum = 0.0                          # its statistics stay
    with torch.no_grad():
        net.train()(x)
    for h in hooks:
        h.remove()
    for norm in every:
        norm.momentum = 0.1
    return not any(alike)


def run(folder, case, shape, classes, only_head):
    weights, net = read(f'{folder}/{case}.model'), CASES[case](classes).double()
    for m in net.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
        if only_head and not isinstance(m, nn.Linear):
            for p in m.parameters(recurse=False):
                p.requires_grad_(False)
    torch.manual_seed(1)
    smooth, out = False, {}
    while not smooth:
        named = load(net, weights)
        out['x'] = torch.randn(BATCH, *shape).double()
        smooth = only_head or clear_kinks(net, out['x'])
    out['target'] = torch.randn(BATCH, classes).softmax(1).double()
    out.update((name, t.clone()) for name, t in named.items() if name.endswith('.bias'))
    with torch.no_grad():
        out['y'] = net.eval()(out['x'])
    loss = -(out['target'] * net.train()(out['x']).log_softmax(1)).sum(1).mean()
    loss.backward()
    out['loss'] = loss.reshape(1)
    for name, t in named.items():
        if t.grad is not None:
            out[name + ':grad'] = t.grad
        elif not isinstance(t, nn.Parameter):
            out[name + ':after'] = t
    write(f'{folder}/{case}.out', out)


if __name__ == '__main__':
    torch.set_num_threads(2)
    for argument in sys.argv[2:]:
        case, sizes = argument.split('=')
        c, h, w, classes, *what = sizes.split(',')
        run(sys.argv[1], case, [int(c), int(h), int(w)], int(classes), what == ['head'])
