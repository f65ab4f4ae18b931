"""layers.py: single convolutions, ours (bench_conv) and oneDNN's (dnnl_layers), in turns for several rounds;
called by layers.sh. The ratio is oneDNN's time over ours within each round: its median, least and greatest."""
import argparse, os, re, statistics, sys
from compare import FOREIGN, run_alone

LINE = re.compile(r'(.{9}) +(\d+)² +(\d+)→(\d+) +k(\d+) +s(\d+) +forward +([\d.]+) ms')


def arguments():
    p = argparse.ArgumentParser(prog='layers.sh', description='our convolutions beside oneDNN, interleaved')
    p.add_argument('--only', default='mnv2 dw', help="layers whose network's name has this in it (mnv2 dw)")
    p.add_argument('--batch', default='1,32', help='batches, separated by commas')
    p.add_argument('--threads', default='1,2', help='numbers of threads, separated by commas')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--wait', type=float, default=10, help='seconds to wait for quiet cores, each time')
    p.add_argument('--ours', required=True, help=argparse.SUPPRESS)
    p.add_argument('--dnnl', required=True, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.quick = False
    return a


def ours(a, env, threads, batch):
    """[(layer, its line for dnnl_layers, ms)] of one round."""
    lines, _ = run_alone(a, [a.ours, '--mode', 'forward', '--only', a.only, '--exact', 'yes', '--threads', threads, '--batch', batch], env)
    found = []
    for m in filter(None, map(LINE.match, lines or ())):
        name, (h, c, o, k, s) = m[1].strip(), m.groups()[1:6]
        groups = c if name.endswith('dw') else '1'
        found.append(('%s %s² %s→%s k%s s%s' % (name, h, c, o, k, s), ' '.join((c, o, h, k, s, groups, batch)), float(m[7])))
    return found


def dnnl(a, env, threads, layers):
    env = {**env, 'OMP_NUM_THREADS': threads, 'OMP_PROC_BIND': 'true'}
    lines, _ = run_alone(a, [a.dnnl], env, ''.join(line + '\n' for _, line, _ in layers))
    return [(float(l.split()[0]), l.split()[1]) for l in lines or ()]


def main():
    a = arguments()
    env = {k: v for k, v in os.environ.items() if not FOREIGN.match(k)}
    allowed = sorted(os.sched_getaffinity(0))
    print('| layer | threads | batch | ours ms | oneDNN ms | oneDNN/ours | min..max | oneDNN\'s kernel |')
    print('|---|---|---|---|---|---|---|---|')
    for threads in a.threads.split(','):
        a.cores = allowed[:int(threads)]
        for batch in a.batch.split(','):
            rounds = []
            for _ in range(a.rounds):
                mine = ours(a, env, threads, batch)
                theirs = dnnl(a, env, threads, mine)
                if not mine or len(mine) != len(theirs):
                    print('layers.sh: no layer was measured by both', file=sys.stderr)
                    return 1
                rounds.append([(m[0], m[2]) + t for m, t in zip(mine, theirs)])
            for row in zip(*rounds):
                ratio = [r[2] / r[1] for r in row]
                print('| %s | %s | %s | %.4f | %.4f | %.2f | %.2f..%.2f | %s |' % (
                    row[0][0], threads, batch, statistics.median(r[1] for r in row), statistics.median(r[2] for r in row),
                    statistics.median(ratio), min(ratio), max(ratio), row[0][3]), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
