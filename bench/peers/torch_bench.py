"""torch_bench.py NETWORK MODE,… THREADS SECONDS: PyTorch on the processor, lines as bench_net prints them.
Inference in two ways, training in one; whoever reads the lines takes the faster way.
  channels-last   eager, activations and weights channels last
  frozen          traced, frozen, optimised for inference: batch norm folded, oneDNN's fused convolutions"""
import statistics, sys, time, warnings
import torch
from torch import nn
import models

warnings.filterwarnings('ignore')


def measure(run, seconds, shortest=2e-3, warm=0.3):
    """Milliseconds of single runs, each a mean over at least `shortest` seconds; as nn_plan_time."""
    def sample(n):
        start = time.perf_counter()
        for _ in range(n):
            run()
        return (time.perf_counter() - start) / n
    run()
    best, end = sample(1), time.perf_counter() + warm
    while time.perf_counter() < end:
        best = min(best, sample(1))
    n = int(-(-shortest // best))
    return [1e3 * sample(n) for _ in range(int(min(300, max(3, seconds / (n * best)))))]


def show(name, mode, batch, way, ms):
    macs, params = SIZE
    ms.sort()
    print('torch model=%s mode=%s batch=%d threads=%d way=%s median_ms=%.4f p10_ms=%.4f p90_ms=%.4f samples=%d'
          ' macs=%d params=%d' % (name, mode, batch, torch.get_num_threads(), way, statistics.median(ms),
                                  ms[len(ms) // 10], ms[(len(ms) - 1) * 9 // 10], len(ms), macs, params), flush=True)


def infer(name, seconds):
    _, side, _, many, _ = models.NETWORKS[name]
    with torch.no_grad():
        for batch in (1, many):
            x = torch.rand(batch, 3, side, side) * 2 - 1
            frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(models.make(name).eval(), x)))
            show(name, 'infer', batch, 'frozen', measure(lambda: frozen(x), seconds))
            net = models.make(name).eval().to(memory_format=torch.channels_last)
            z = x.contiguous(memory_format=torch.channels_last)
            show(name, 'infer', batch, 'channels-last', measure(lambda: net(z), seconds))


def train(name, seconds):
    _, side, classes, _, batch = models.NETWORKS[name]
    net = models.make(name).train().to(memory_format=torch.channels_last)
    x = (torch.rand(batch, 3, side, side) * 2 - 1).contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, classes, (batch,))
    sgd = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9, weight_decay=1e-4)

    def step():
        sgd.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x), label).backward()
        sgd.step()
    show(name, 'train', batch, 'channels-last', measure(step, seconds))


if __name__ == '__main__':
    network, modes, threads, budget = sys.argv[1], sys.argv[2].split(','), int(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(threads)
    SIZE = models.size(network)
    if 'infer' in modes:
        infer(network, budget)
    if 'train' in modes:
        train(network, budget)
