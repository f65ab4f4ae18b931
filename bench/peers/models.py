"""The networks of bench_net for PyTorch: same names, layers, batches and starting weights' spread.
Weights themselves are random: only speed is compared, and `size` shows that the work is the same."""
import torch
from torch import nn


def unit(i, o, k, stride=1, groups=1, act=nn.ReLU, bias=False):
    """Convolution, batch norm, activation (None: without)."""
    layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias), nn.BatchNorm2d(o)]
    return layers + ([act(inplace=True)] if act else [])


class Residual(nn.Module):
    def __init__(self, main, skip=None, relu=True):
        super().__init__()
        self.main, self.skip = nn.Sequential(*main), skip or nn.Identity()
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x):
        return self.act(self.main(x) + self.skip(x))


class OptionA(nn.Module):
    """He et al. 2016: every stride-th pixel, the missing channels zero."""
    def __init__(self, i, o, stride):
        super().__init__()
        self.stride, self.more = stride, o - i

    def forward(self, x):
        x = x[:, :, ::self.stride, ::self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


def head(i, classes):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, classes)]


def resnet(blocks, width, cifar, classes):
    layers = unit(3, width, 3) if cifar else unit(3, width, 7, 2) + [nn.MaxPool2d(3, 2, 1)]
    i = width
    for stage, repeat in enumerate(blocks):
        for n in range(repeat):
            o, stride, skip = width << stage, 2 if stage and not n else 1, None
            if i != o:
                skip = OptionA(i, o, stride) if cifar else nn.Sequential(*unit(i, o, 1, stride, act=None))
            layers.append(Residual(unit(i, o, 3, stride) + unit(o, o, 3, act=None), skip))
            i = o
    return nn.Sequential(*layers, *head(i, classes))


def mobilenetv2(width, small, classes):
    """Sandler et al. 2018, table 2; small images: the first two strides are 1."""
    def channels(c):
        n = max(8, int(c * width + 4) // 8 * 8)
        return n + 8 if n < 0.9 * c * width else n
    i, last = channels(32), 1280 if width <= 1 else channels(1280)
    layers = unit(3, i, 3, 1 if small else 2, act=nn.ReLU6)
    for expand, c, repeat, s in ((1, 16, 1, 1), (6, 24, 2, 1 if small else 2), (6, 32, 3, 2), (6, 64, 4, 2),
                                 (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
        for n in range(repeat):
            o, mid, stride = channels(c), i * expand, 1 if n else s
            main = unit(i, mid, 1, act=nn.ReLU6) if expand > 1 else []
            main += unit(mid, mid, 3, stride, mid, nn.ReLU6) + unit(mid, o, 1, act=None)
            layers.append(Residual(main, relu=False) if stride == 1 and i == o else nn.Sequential(*main))
            i = o
    pool, flat, linear = head(last, classes)
    return nn.Sequential(*layers, *unit(i, last, 1, act=nn.ReLU6), pool, flat, nn.Dropout(0.2), linear)


def vgg19_bn(classes):
    layers, i = [], 3
    for o, repeat in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(repeat):
            layers += unit(i, o, 3, bias=True)
            i = o
        layers.append(nn.MaxPool2d(2, 2))
    layers.append(nn.Flatten())
    for a, b in ((512 * 49, 4096), (4096, 4096)):
        layers += [nn.Linear(a, b), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(4096, classes))


# name: builder, side and classes of the images, the large batch of inference, the batch of training
NETWORKS = {
    'resnet20': (lambda: resnet((3, 3, 3), 16, True, 10), 32, 10, 128, 128),
    'resnet56': (lambda: resnet((9, 9, 9), 16, True, 10), 32, 10, 128, 128),
    'mobilenetv2_32': (lambda: mobilenetv2(1, True, 10), 32, 10, 128, 128),
    'mobilenetv2': (lambda: mobilenetv2(1, False, 1000), 224, 1000, 32, 32),
    'mobilenetv2_1.4': (lambda: mobilenetv2(1.4, False, 1000), 224, 1000, 32, 32),
    'resnet34': (lambda: resnet((3, 4, 6, 3), 64, False, 1000), 224, 1000, 32, 32),
    'vgg19_bn': (lambda: vgg19_bn(1000), 224, 1000, 32, 8),
}


def make(name):
    torch.manual_seed(1)
    net = NETWORKS[name][0]()
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
    return net


def size(name):
    """Multiply-adds of one image in convolutions and linear layers, and trained parameters."""
    net, macs = make(name).eval(), 0

    def count(m, _, y):
        nonlocal macs
        macs += y.numel() * m.weight[0].numel()
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, 3, NETWORKS[name][1], NETWORKS[name][1]))
    return macs, sum(p.numel() for p in net.parameters())


def export(name, path):
    """As ONNX with any batch; the exporter folds batch norm."""
    side = NETWORKS[name][1]
    any_batch = {'x': {0: 'N'}, 'y': {0: 'N'}}
    torch.onnx.export(make(name).eval(), torch.zeros(1, 3, side, side), path, opset_version=13,
                      input_names=['x'], output_names=['y'], dynamic_axes=any_batch)
