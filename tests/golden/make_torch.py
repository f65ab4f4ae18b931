"""Every op as PyTorch computes it: python3 tests/golden/make_torch.py. Needs torch 1.13 or newer.

Writes torch_<group>.safetensors beside itself. Metadata holds one graph in text form per case, and a
tensor is called case/what:
  case/x  case/op.weight       input or parameter, rounded to float before anything is computed
  case/op  case/op:eval        what the node op computes in training mode; in evaluation mode, where it differs
  case/total  case/total:eval  the sum of the losses
  case/x:grad  case/op.weight:grad  its gradients
  case/bn.running_var:after    the parameter after one forward in training mode
All is computed in double and rounded to float once. Images are N,C,H,W here."""
import json, os, re, struct, zlib
import torch
from torch.nn import functional as F

torch.set_num_threads(1)
FOLDER = os.path.dirname(os.path.abspath(__file__))
HEAD = 'head = linear(%s) out=2\ntarget = input() size=1,1,2\nloss = softmax_xent(head, target)\n'


class Group:
    def __init__(self, name):
        self.path, self.meta, self.tensors = os.path.join(FOLDER, 'torch_%s.safetensors' % name), {}, {}

    def put(self, name, t):
        assert name not in self.tensors and torch.isfinite(t).all(), name
        self.tensors[name] = t.detach().to(torch.float32).contiguous()

    def write(self):
        header, at, data = {'__metadata__': self.meta}, 0, b''
        for name, t in self.tensors.items():
            raw = t.numpy().astype('<f4').tobytes()
            header[name] = {'dtype': 'F32', 'shape': list(t.shape), 'data_offsets': [at, at + len(raw)]}
            at, data = at + len(raw), data + raw
        text = json.dumps(header, separators=(',', ':')).encode()
        text += b' ' * (-len(text) % 8)
        with open(self.path, 'wb') as f:
            f.write(struct.pack('<Q', len(text)) + text + data)
        print(os.path.basename(self.path), 8 + len(text) + at)


def single(t):
    """The value a float can hold, as a double."""
    return t.to(torch.float32).to(torch.float64)


def value(name, shape):
    if name.startswith('target'):
        return single(torch.softmax(2 * torch.randn(shape), 1))
    if re.search(r'running_var$|bn\d?\.weight$', name):
        return single(0.5 + torch.rand(shape))
    scale = shape[0] / torch.Size(shape).numel() if name.endswith('.weight') else 1
    return single(torch.randn(shape) * scale ** 0.5)


def input_line(name, t):
    c, h, w = tuple(t.shape[1:]) + (1, 1) * (t.dim() == 2)
    return '%s = input() size=%d,%d,%d\n' % (name, h, w, c)


def case(group, name, graph, shapes, compute, output='op', given=()):
    """compute(t, train) returns the values of nodes by name, and 'total' if the graph ends in losses of its own.
    A graph without losses gets HEAD behind its output, whose own gradients are left to the linear cases."""
    torch.manual_seed(zlib.crc32(name.encode()))
    t = {k: single(v) for k, v in dict(given).items()}
    t.update({k: value(k, s) for k, s in shapes.items() if k not in t})
    own_loss = 'softmax_xent' in graph or 'distill' in graph
    if not own_loss:
        y = compute({k: v.clone() for k, v in t.items()}, True)[output]
        classes = value('target', (y.shape[0], 2))
        t['head.weight'] = value('head.weight', (2, y[0].numel()))
        graph += HEAD % output
    group.meta[name] = ('graph arch="%s" barrier=none output=%s\n' % (name, output) +
                        ''.join(input_line(k, v) for k, v in t.items() if '.' not in k) + graph)
    if not own_loss:
        t['target'] = classes
    for k, v in t.items():
        group.put(name + '/' + k, v)
    modes = (False, True) if any('running' in k for k in t) else (True,)
    for train in modes:
        leaf = {k: v.clone().requires_grad_('running' not in k and k not in ('target', 'teacher'))
                for k, v in t.items()}
        values = compute(leaf, train)
        if not own_loss:
            z = F.linear(values[output].flatten(1), leaf['head.weight'])
            values['total'] = F.cross_entropy(z, leaf['target'])
        for k, v in values.items():
            group.put('%s/%s%s' % (name, k, '' if train else ':eval'), v.reshape(1) if v.dim() == 0 else v)
    values['total'].backward()
    for k, v in leaf.items():
        if v.requires_grad and not k.startswith('head'):
            group.put('%s/%s:grad' % (name, k), v.grad)
        elif 'running' in k:
            group.put('%s/%s:after' % (name, k), v)


# ---- convolution and linear -------------------------------------------------------------------------------------

def pairs(x):
    return x if isinstance(x, tuple) else (x, x)


def around(x, pad, value=0):
    """pad is top, bottom, left, right, as in the graph; negative crops."""
    return F.pad(x, (pad[2], pad[3], pad[0], pad[1]), value=value)


CONVS = [  # name           n  c   h  w    out k      stride   pad t,b,l,r    dilation groups bias
    ('same',                1, 5,  7, 6,   7,  3,      1,      (1, 1, 1, 1),  1,       1,  True),
    ('stem',                2, 3,  9, 8,   3,  7,      2,      (3, 3, 3, 3),  1,       1,  False),
    ('asymmetric',          2, 3,  8, 7,   4,  (3, 2), (2, 1), (0, 2, 1, 3),  1,       1,  True),
    ('dilated',             1, 3,  7, 8,   4,  3,      1,      (2, 2, 3, 3),  (2, 3),  1,  True),
    ('dilated_strided',     1, 2, 10, 11,  3,  (2, 3), (3, 2), (1, 0, 2, 1),  (3, 2),  1,  True),
    ('pointwise',           2, 17, 3, 4,   19, 1,      1,      (0, 0, 0, 0),  1,       1,  True),
    ('projection',          2, 9,  5, 4,   11, 1,      2,      (0, 0, 0, 0),  1,       1,  False),
    ('wide',                1, 9,  4, 3,   17, 3,      1,      (1, 1, 1, 1),  1,       1,  True),
    ('even_kernel',         2, 3,  7, 8,   5,  (4, 2), 2,      (1, 2, 0, 1),  1,       1,  True),
    ('groups',              2, 6,  7, 5,   9,  3,      (1, 2), (1, 1, 1, 1),  1,       3,  True),
    ('depthwise',           1, 19, 5, 4,   19, 3,      1,      (1, 1, 1, 1),  1,       19, True),
    ('depthwise_strided',   2, 6,  8, 7,   6,  5,      2,      (1, 2, 1, 2),  1,       6,  False),
    ('depthwise_dilated',   1, 4,  8, 6,   4,  (3, 2), 1,      (2, 2, 0, 3),  (2, 3),  4,  True),
    ('depthwise_multiplied', 1, 5, 6, 5,   10, 3,      2,      (1, 1, 1, 1),  1,       5,  True),
    ('border_alone',        2, 3,  1, 2,   4,  3,      1,      (1, 1, 1, 1),  1,       1,  True),
]


def convolutions():
    g = Group('conv2d')
    for name, n, c, h, w, out, k, stride, pad, dilation, groups, bias in CONVS:
        k, stride, dilation = pairs(k), pairs(stride), pairs(dilation)
        shapes = {'x': (n, c, h, w), 'op.weight': (out, c // groups) + k}
        if bias:
            shapes['op.bias'] = (out,)
        line = 'op = conv2d(x) out=%d k=%d,%d stride=%d,%d pad=%d,%d,%d,%d dilation=%d,%d groups=%d bias=%d\n' % (
            (out,) + k + stride + pad + dilation + (groups, bias))
        case(g, name, line, shapes, lambda t, train: {
            'op': F.conv2d(around(t['x'], pad), t['op.weight'], t.get('op.bias'), stride, 0, dilation, groups)})
    g.write()
    g = Group('linear')
    for name, shape, out, bias in [('of_a_map', (2, 3, 4, 5), 7, True), ('of_a_wide_map', (3, 17, 2, 1), 5, False),
                                   ('of_a_row', (4, 21), 18, True)]:
        size = torch.Size(shape[1:]).numel()
        shapes = {'x': shape, 'op.weight': (out, size)}
        if bias:
            shapes['op.bias'] = (out,)
        case(g, name, 'op = linear(x) out=%d bias=%d\n' % (out, bias), shapes, lambda t, train: {
            'op': F.linear(t['x'].flatten(1), t['op.weight'], t.get('op.bias'))})
    g.write()


# ---- batch norm, activations, shapes, pools ---------------------------------------------------------------------

def norm_shapes(name, c):
    return {'%s.%s' % (name, k): (c,) for k in ('weight', 'bias', 'running_mean', 'running_var')}


def norm(t, name, x, train, momentum=0.1, eps=1e-5):
    return F.batch_norm(x, t[name + '.running_mean'], t[name + '.running_var'], t[name + '.weight'],
                        t[name + '.bias'], train, momentum, eps)


def norms():
    g = Group('batchnorm')
    for name, shape, momentum, eps in [('usual', (3, 5, 4, 6), 0.1, 1e-5), ('wide', (2, 19, 3, 2), 0.3, 1e-3),
                                       ('row', (5, 4), 0.01, 1e-5)]:
        case(g, name, 'bn = batchnorm(x) momentum=%g eps=%g\n' % (momentum, eps),
             dict({'x': shape}, **norm_shapes('bn', shape[1])),
             lambda t, train: {'bn': norm(t, 'bn', t['x'], train, momentum, eps)}, output='bn')
    case(g, 'far_from_zero', 'bn = batchnorm(x)\n', norm_shapes('bn', 3),
         lambda t, train: {'bn': norm(t, 'bn', t['x'], train)}, output='bn',
         given={'x': 20 + 0.5 * torch.linspace(-1, 1, 2 * 3 * 5 * 4).sin().reshape(2, 3, 5, 4)})

    def chain(t, train):
        a = F.relu6(3 * F.conv2d(t['x'], t['before.weight'] / 3, padding=1))
        y = norm(t, 'bn', F.conv2d(a, t['conv.weight'], padding=1), train)
        return {'op': F.relu(y + a)}
    case(g, 'chain', 'before = conv2d(x) out=6 k=3,3 pad=1,1,1,1\na = relu6(before)\n'
         'conv = conv2d(a) out=6 k=3,3 pad=1,1,1,1\nbn = batchnorm(conv)\nsum = add(bn, a)\nop = relu(sum)\n',
         dict({'x': (2, 4, 5, 4), 'before.weight': (6, 4, 3, 3), 'conv.weight': (6, 6, 3, 3)}, **norm_shapes('bn', 6)),
         chain)
    g.write()


def unary(group, name, line, shape, f, **more):
    case(group, name, line, {'x': shape}, lambda t, train: {'op': f(t['x'])}, **more)


def shapes():
    g = Group('shape')
    kinks = torch.tensor([-1, 0, 1e-3, 3, 5.999, 6, 6.001, 40, -40, 2]).repeat(2, 6).reshape(2, 3, 4, 5)
    for name, f in [('relu', F.relu), ('relu6', F.relu6)]:
        unary(g, name, 'op = %s(x)\n' % name, None, f, given={'x': kinks})
    case(g, 'add', 'a = relu(x)\nb = conv2d(x) out=3\nop = add(a, b)\n', {'x': (2, 3, 4, 5), 'b.weight': (3, 3, 1, 1)},
         lambda t, train: {'op': F.relu(t['x']) + F.conv2d(t['x'], t['b.weight'])})
    unary(g, 'double', 'op = add(x, x)\n', (2, 3, 4, 2), lambda x: x + x)
    for name, pad in [('pad', (1, 0, 2, 3)), ('crop', (-1, -2, 0, -1)), ('pad_and_crop', (2, -1, -2, 1))]:
        unary(g, name, 'op = pad(x) pad=%d,%d,%d,%d\n' % pad, (2, 3, 5, 6), lambda x: around(x, pad))
    unary(g, 'option_a', 'op = slice(x) stride=2,2 chan=2,2\n', (2, 4, 5, 6),
          lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
    unary(g, 'option_a_uneven', 'op = slice(x) stride=3,2 chan=1,3\n', (2, 3, 6, 5),
          lambda x: F.pad(x[:, :, ::3, ::2], (0, 0, 0, 0, 1, 3)))
    case(g, 'concat', 'r = relu(y)\nop = concat(x, r, y, x)\n', {'x': (2, 3, 2, 3), 'y': (2, 2, 2, 3)},
         lambda t, train: {'op': torch.cat([t['x'], F.relu(t['y']), t['y'], t['x']], 1)})
    g.write()


def pools():
    g = Group('pool')
    inf = float('inf')
    for name, k, stride, pad in [('padded', (3, 3), (2, 2), (1, 1, 1, 1)), ('plain', (2, 2), (2, 2), (0, 0, 0, 0)),
                                 ('uneven', (2, 4), (1, 3), (0, 1, 2, 1))]:
        window = ' k=%d,%d stride=%d,%d pad=%d,%d,%d,%d' % (k + stride + pad)

        def largest(x):
            return F.max_pool2d(around(x, pad, -inf), k, stride)

        def mean(x):
            return F.avg_pool2d(around(x, pad), k, stride)

        def mean_of_present(x):
            return mean(x) / mean(torch.ones_like(x))
        if pad[0] == pad[1] and pad[2] == pad[3]:
            both = (pad[0], pad[2])
            largest = lambda x: F.max_pool2d(x, k, stride, both)
            mean = lambda x: F.avg_pool2d(x, k, stride, both, count_include_pad=True)
            mean_of_present = lambda x: F.avg_pool2d(x, k, stride, both, count_include_pad=False)
        shape = (2, 3, 7, 6)
        unary(g, 'max_' + name, 'op = maxpool(x)%s\n' % window, shape, largest)
        unary(g, 'avg_%s_counted' % name, 'op = avgpool(x)%s count_pad=1\n' % window, shape, mean)
        unary(g, 'avg_%s_present' % name, 'op = avgpool(x)%s\n' % window, shape, mean_of_present)
    torch.manual_seed(1)
    ties = torch.randint(-2, 1, (2, 3, 7, 6))
    unary(g, 'max_ties', 'op = maxpool(x) k=3,3 stride=2,2 pad=1,1,1,1\n', None, lambda x: F.max_pool2d(x, 3, 2, 1),
          given={'x': ties})
    unary(g, 'global', 'op = globalpool(x)\n', (2, 18, 3, 5), lambda x: F.adaptive_avg_pool2d(x, 1))
    g.write()


# ---- losses -----------------------------------------------------------------------------------------------------

def losses():
    g = Group('loss')
    labels = torch.tensor([3, 0, 6, 6])

    def rows(name, lines, total, given=(), others=('target',), c=7):
        shapes = {k: (4, c) for k in ('x',) + others}
        case(g, name, lines, shapes, lambda t, train: {'total': total(t)}, output='x', given=given)

    def soften(t, T):
        return T * T * F.cross_entropy(t['x'] / T, torch.softmax(t['teacher'] / T, 1))
    one_hot = {'target': F.one_hot(labels, 7)}
    xent = 'loss = softmax_xent(x, target)'
    rows('labels', xent + '\n', lambda t: F.cross_entropy(t['x'], labels), one_hot)
    rows('labels_smoothed', xent + ' smoothing=0.1\n', lambda t: F.cross_entropy(t['x'], labels, label_smoothing=0.1),
         one_hot)
    rows('soft', xent + '\n', lambda t: F.cross_entropy(t['x'], t['target']), c=19)
    rows('soft_smoothed', xent + ' smoothing=0.2 weight=0.7\n',
         lambda t: 0.7 * F.cross_entropy(t['x'], t['target'], label_smoothing=0.2))
    rows('sure', xent + '\n', lambda t: F.cross_entropy(t['x'], t['target']),
         {'x': 60 * torch.linspace(-1, 1, 28).mul(9).sin().reshape(4, 7)})
    distill = 'kd = distill(x, teacher)'
    for name, T in [('distill', 4), ('distill_cold', 0.5), ('distill_plain', 1)]:
        rows(name, '%s temperature=%g\n' % (distill, T), lambda t: soften(t, T), others=('teacher',))
    rows('mixed', '%s smoothing=0.1 weight=0.25\n%s temperature=2.5 weight=0.75\n' % (xent, distill),
         lambda t: 0.25 * F.cross_entropy(t['x'], t['target'], label_smoothing=0.1) + 0.75 * soften(t, 2.5),
         others=('target', 'teacher'))
    g.write()


# ---- whole networks ---------------------------------------------------------------------------------------------

def conv_shapes(**convs):
    return {name + '.weight': shape for name, shape in convs.items()}


def residual(t, train):
    def block(x, name, stride, skip):
        y = F.conv2d(x, t[name + '.conv1.weight'], None, stride, 1)
        y = F.relu(norm(t, name + '.bn1', y, train))
        y = norm(t, name + '.bn2', F.conv2d(y, t[name + '.conv2.weight'], None, 1, 1), train)
        return F.relu(y + skip(x))
    x = F.relu(norm(t, 'bn', F.conv2d(t['x'], t['conv.weight'], None, 1, 1), train))
    x = block(x, 'a', 1, lambda x: x)
    x = block(x, 'b', 2, lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
    x = block(x, 'c', 2, lambda x: norm(t, 'c.bn3', F.conv2d(x, t['c.conv3.weight'], None, 2), train))
    z = F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), t['fc.weight'], t['fc.bias'])
    return {'fc': z, 'total': F.cross_entropy(z, t['target'], label_smoothing=0.1)}


RESIDUAL = '''
conv = conv2d(x) out=5 k=3,3 pad=1,1,1,1 fixed=1
bn = batchnorm(conv)
relu = relu(bn)
a.conv1 = conv2d(relu) out=5 k=3,3 pad=1,1,1,1
a.bn1 = batchnorm(a.conv1)
a.relu1 = relu(a.bn1)
a.conv2 = conv2d(a.relu1) out=5 k=3,3 pad=1,1,1,1
a.bn2 = batchnorm(a.conv2)
a.add = add(a.bn2, relu)
a = relu(a.add)
b.conv1 = conv2d(a) out=7 k=3,3 stride=2,2 pad=1,1,1,1
b.bn1 = batchnorm(b.conv1)
b.relu1 = relu(b.bn1)
b.conv2 = conv2d(b.relu1) out=7 k=3,3 pad=1,1,1,1
b.bn2 = batchnorm(b.conv2)
b.skip = slice(a) stride=2,2 chan=1,1
b.add = add(b.bn2, b.skip)
b = relu(b.add)
c.conv1 = conv2d(b) out=9 k=3,3 stride=2,2 pad=1,1,1,1
c.bn1 = batchnorm(c.conv1)
c.relu1 = relu(c.bn1)
c.conv2 = conv2d(c.relu1) out=9 k=3,3 pad=1,1,1,1
c.bn2 = batchnorm(c.conv2)
c.conv3 = conv2d(b) out=9 stride=2,2 fixed=1
c.bn3 = batchnorm(c.conv3)
c.add = add(c.bn2, c.bn3)
c = relu(c.add)
pool = globalpool(c)
fc = linear(pool) out=5 bias=1
loss = softmax_xent(fc, target) smoothing=0.1
'''.lstrip()


def inverted(t, train):
    x = F.relu6(norm(t, 'bn', F.conv2d(t['x'], t['conv.weight'], None, 2, 1), train))
    y = F.relu6(norm(t, 'bn1', F.conv2d(x, t['expand.weight']), train))
    y = F.relu6(norm(t, 'bn2', F.conv2d(y, t['depth.weight'], None, 1, 1, 1, 18), train))
    x = x + norm(t, 'bn3', F.conv2d(y, t['reduce.weight']), train)
    z = F.linear(F.max_pool2d(x, 2).flatten(1), t['fc.weight'], t['fc.bias'])
    return {'fc': z, 'total': F.cross_entropy(z, t['target'])}


INVERTED = '''
conv = conv2d(x) out=6 k=3,3 stride=2,2 pad=1,1,1,1 fixed=1
bn = batchnorm(conv)
stem = relu6(bn)
expand = conv2d(stem) out=18
bn1 = batchnorm(expand)
act1 = relu6(bn1)
depth = conv2d(act1) out=18 k=3,3 pad=1,1,1,1 groups=18
bn2 = batchnorm(depth)
act2 = relu6(bn2)
reduce = conv2d(act2) out=6
bn3 = batchnorm(reduce)
add = add(stem, bn3)
pool = maxpool(add) k=2,2 stride=2,2
fc = linear(pool) out=5 bias=1
loss = softmax_xent(fc, target)
'''.lstrip()


def networks():
    g = Group('net')
    s = dict({'x': (3, 3, 9, 8), 'target': (3, 5), 'fc.weight': (5, 9), 'fc.bias': (5,)},
             **conv_shapes(**{'conv': (5, 3, 3, 3), 'a.conv1': (5, 5, 3, 3), 'a.conv2': (5, 5, 3, 3),
                              'b.conv1': (7, 5, 3, 3), 'b.conv2': (7, 7, 3, 3), 'c.conv1': (9, 7, 3, 3),
                              'c.conv2': (9, 9, 3, 3), 'c.conv3': (9, 7, 1, 1)}))
    for name, c in [('bn', 5), ('a.bn1', 5), ('a.bn2', 5), ('b.bn1', 7), ('b.bn2', 7), ('c.bn1', 9), ('c.bn2', 9),
                    ('c.bn3', 9)]:
        s.update(norm_shapes(name, c))
    case(g, 'residual', RESIDUAL, s, residual, output='fc')
    s = dict({'x': (3, 3, 8, 10), 'target': (3, 5), 'fc.weight': (5, 24), 'fc.bias': (5,)},
             **conv_shapes(conv=(6, 3, 3, 3), expand=(18, 6, 1, 1), depth=(18, 1, 3, 3), reduce=(6, 18, 1, 1)))
    for name, c in [('bn', 6), ('bn1', 18), ('bn2', 18), ('bn3', 6)]:
        s.update(norm_shapes(name, c))
    case(g, 'inverted', INVERTED, s, inverted, output='fc')
    g.write()


# ---- optimisers -------------------------------------------------------------------------------------------------

OPTIMISERS = [  # name        class             lr    momentum or beta1, beta2, eps, weight decay
    ('sgd_nesterov',  torch.optim.SGD,   0.1,  0.9, 0,     0,    0.1),
    ('sgd_heavy',     torch.optim.SGD,   0.05, 0.8, 0,     0,    0.2),
    ('sgd_plain',     torch.optim.SGD,   0.1,  0,   0,     0,    0),
    ('adam',          torch.optim.Adam,  0.02, 0.9, 0.999, 1e-8, 0.1),
    ('adam_damped',   torch.optim.Adam,  0.02, 0.7, 0.9,   0.1,  0),
    ('adamw',         torch.optim.AdamW, 0.02, 0.9, 0.99,  1e-3, 0.3),
]


def optimisers():
    """case/options (lr, momentum or beta1, beta2, eps, weight decay), case/w0 … w3, case/g1 … g3."""
    g = Group('optim')
    for name, cls, *options in OPTIMISERS:
        torch.manual_seed(zlib.crc32(name.encode()))
        options = single(torch.tensor(options, dtype=torch.float64))
        lr, m, b2, eps, wd = options.tolist()
        w = single(torch.randn(37)).requires_grad_()
        more = dict(betas=(m, b2), eps=eps)
        if cls == torch.optim.SGD:
            more = dict(momentum=m, nesterov=name == 'sgd_nesterov')
        optimiser = cls([w], lr=lr, weight_decay=wd, **more)
        g.put(name + '/options', options)
        g.put(name + '/w0', w)
        for step in (1, 2, 3):
            w.grad = single(torch.randn(37))
            optimiser.step()
            g.put('%s/g%d' % (name, step), w.grad)
            g.put('%s/w%d' % (name, step), w)
        g.meta[name] = cls.__name__
    g.write()


convolutions()
norms()
shapes()
pools()
losses()
networks()
optimisers()
