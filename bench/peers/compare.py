"""compare.py: ours, PyTorch, ONNX Runtime, ours, … for several rounds, and a table of medians. Called by
run.sh. The ratio of a row is the best peer's time over ours (for training ours over the peer's images
per second: the same number), taken within each round; its median, least and greatest are shown. A
program during which others used the cores runs again, whoever's program it is (--quick: it does not),
and a number that was never measured alone is marked: bench_net's ruler also repeats single disturbed
samples, the peers' do not, so on a busy machine the ratio flatters ours."""
import argparse, os, re, statistics, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
BUSY = 0.05                                   # the share of the cores others may use
# What a user's environment may carry and no comparison should.
FOREIGN = re.compile(r'(OPENBLAS|GOTO|BLIS|OMP|GOMP|KMP|MKL|DNNL|ONEDNN|ATEN|TORCH|PYTORCH|MALLOC|GLIBC)_|LD_PRELOAD$')
# glibc gives large blocks back to the system at every free; the page faults then cost PyTorch half its speed.
KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(8 << 30), 'MALLOC_TRIM_THRESHOLD_': str(32 << 30),
               'MALLOC_TOP_PAD_': str(256 << 20)}


def arguments():
    p = argparse.ArgumentParser(prog='run.sh', description='our networks beside the peers, interleaved')
    p.add_argument('--models', help='names separated by commas; all of them unless given')
    p.add_argument('--infer', action='store_true', help='only inference')
    p.add_argument('--train', action='store_true', help='only training')
    p.add_argument('--quick', action='store_true', help='two short rounds, to see that everything works')
    p.add_argument('--rounds', type=int, help='how often each program runs (5)')
    p.add_argument('--seconds', type=float, help='time for one number of one round (1)')
    p.add_argument('--cores', help='cores to run on (those allowed)')
    p.add_argument('--wait', type=float, default=10, help='seconds to wait for quiet cores, each time')
    p.add_argument('--ours', required=True, help=argparse.SUPPRESS)
    p.add_argument('--work', required=True, help=argparse.SUPPRESS)
    p.add_argument('--peers', required=True, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.rounds = a.rounds or (2 if a.quick else 5)
    a.seconds = a.seconds or (0.2 if a.quick else 1)
    a.modes = [m for m in ('infer', 'train') if getattr(a, m)] or ['infer', 'train']
    allowed = os.sched_getaffinity(0)
    a.cores = sorted(int(c) for c in a.cores.split(',')) if a.cores else sorted(allowed)
    if not set(a.cores) <= allowed:
        p.error('not all of cores %s may be used' % a.cores)
    return p, a


# ---- running one program on the cores, alone ----------------------------------------------------------

def busy_seconds(cores):
    """CPU time the cores have spent on anyone, stolen time included; the system counts in ticks."""
    wanted, ticks = {'cpu%d' % c for c in cores}, 0
    for line in open('/proc/stat'):
        word = line.split()
        if word[0] in wanted:
            ticks += sum(map(int, word[1:4] + word[6:9]))
    return ticks / os.sysconf('SC_CLK_TCK')


def wait_for_quiet(a):
    end = time.time() + a.wait
    while time.time() < end:
        before = busy_seconds(a.cores)
        time.sleep(0.3)
        if busy_seconds(a.cores) - before < BUSY * 0.3 * len(a.cores):
            return


def run_once(a, command, env, text):
    """Its lines and the share of the cores others used meanwhile."""
    begin, before, own = time.time(), busy_seconds(a.cores), sum(os.times()[2:4])
    done = subprocess.run(command, env=env, capture_output=True, text=True, input=text,
                          preexec_fn=lambda: os.sched_setaffinity(0, a.cores))
    own = sum(os.times()[2:4]) - own
    others = busy_seconds(a.cores) - before - own
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['status %d' % done.returncode])[-1]
        print('run.sh: %s: %s' % (' '.join(map(os.path.basename, command[:3])), last), file=sys.stderr)
        return None, 0
    return done.stdout.splitlines(), max(0, others) / (time.time() - begin) / len(a.cores)


def run_alone(a, command, env, text=None):
    best = None
    for _ in range(1 if a.quick else 3):
        wait_for_quiet(a)
        lines, others = run_once(a, command, env, text)
        if lines is None:
            return None, 0
        if best is None or others < best[1]:
            best = lines, others
        if best[1] <= BUSY:
            break
    return best


# ---- the programs ---------------------------------------------------------------------------------------

def commands(a, name):
    """Who takes part, with command and environment."""
    peers, threads, modes = a.peers.split(','), str(len(a.cores)), ','.join(a.modes)
    clean = {k: v for k, v in os.environ.items() if not FOREIGN.match(k)}
    yield 'ours', [a.ours, '--models', name, '--mode', modes, '--threads', threads, '--seconds', str(a.seconds)], clean
    if 'torch' in peers:
        yield ('torch', [sys.executable, HERE + '/torch_bench.py', name, modes, threads, str(a.seconds)],
               {**clean, **KEEP_MEMORY, 'OMP_NUM_THREADS': threads, 'OMP_PROC_BIND': 'true'})
    if 'ort' in peers and 'infer' in a.modes:
        file = '%s/%s.onnx' % (a.work, name)
        if os.path.exists(file) or export(name, file):
            _, side, classes, many, _ = NETWORKS[name]
            yield ('ort', ['node', HERE + '/ort_bench.js', name, file, str(side), str(classes), '1,%d' % many,
                           ','.join(map(str, a.cores)), str(a.seconds)], clean)


def export(name, file):
    code = 'import sys, models, warnings; warnings.filterwarnings("ignore"); models.export(*sys.argv[1:])'
    done = subprocess.run([sys.executable, '-c', code, name, file + '.new'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': HERE})
    if done.returncode:
        print('run.sh: no ONNX file of %s: %s' % (name, done.stderr.strip().splitlines()[-1]), file=sys.stderr)
        return False
    os.rename(file + '.new', file)
    return True


def networks():
    """Names and batches are in models.py, which needs PyTorch; without it ours alone are listed."""
    sys.path.insert(0, HERE)
    try:
        import models
        return models.NETWORKS
    except ImportError:
        return None


# ---- rounds and rows ------------------------------------------------------------------------------------

def words(line):
    return dict(w.split('=', 1) for w in line.split()[1:])


def measure(a, name, log):
    """{(mode, batch): {who: [ms of each round]}}; of several ways of one peer the fastest counts.
    Also the programs that were never alone, and what sizes the programs say the network has."""
    table, crowded, sizes = {}, set(), set()
    group = list(commands(a, name))
    for number in range(a.rounds):
        for who, command, env in list(group):
            lines, others = run_alone(a, command, env)
            if lines is None:
                group = [g for g in group if g[0] != who]
                continue
            if others > BUSY:
                crowded.add(who)
            for line in filter(lambda l: ' model=' in l, lines):
                print('round=%d others=%.3f %s' % (number + 1, others, line), file=log, flush=True)
                w = words(line)
                if 'macs' in w:
                    sizes.add((w['macs'], w['params']))
                row = table.setdefault((w['mode'], int(w['batch'])), {})
                row.setdefault(who, {}).setdefault(w.get('way', ''), []).append(float(w['median_ms']))
    for row in table.values():
        for who, ways in row.items():
            row[who] = min(ways.values(), key=statistics.median)
    return table, crowded, sizes


def number(x):
    return '-' if x is None else '%.0f' % x if x >= 1000 else '%.4g' % x


COLUMNS = ('model', 'mode', 'batch', 'ours', 'torch', 'ort', 'best peer/ours', 'min..max')
WIDTHS = (16, 11, 5, 9, 9, 9, 14, 12)


def show(cells):
    print('| ' + ' | '.join(str(c).ljust(w) if i < 2 else str(c).rjust(w)
                            for i, (c, w) in enumerate(zip(cells, WIDTHS))) + ' |', flush=True)


def show_rows(name, table, crowded):
    for (mode, batch), row in sorted(table.items()):
        unit = (lambda ms: ms) if mode == 'infer' else (lambda ms: 1e3 * batch / ms)
        middle = {who: statistics.median(ms) for who, ms in row.items()}
        cells = [number(unit(middle[w])) + '*' * (w in crowded) if w in middle else '-' for w in ('ours', 'torch', 'ort')]
        peers = [w for w in middle if w != 'ours']
        ratio = spread = '-'
        if peers and 'ours' in row:
            best = min(peers, key=middle.get)
            ratios = [p / o for p, o in zip(row[best], row['ours'])]
            ratio, spread = '%.2f' % statistics.median(ratios), '%.2f..%.2f' % (min(ratios), max(ratios))
        show([name, 'infer ms' if mode == 'infer' else 'train img/s', batch] + cells + [ratio, spread])


def main():
    global NETWORKS
    parser, a = arguments()
    NETWORKS = networks()
    if NETWORKS is None:
        a.peers = 'ours'
        NETWORKS = dict.fromkeys(re.findall(r'^    \{ "([^"]+)"', open(HERE + '/../bench_net.c').read(), re.M))
    names = a.models.split(',') if a.models else list(NETWORKS)
    if not set(names) <= set(NETWORKS):
        parser.error('models are ' + ' '.join(NETWORKS))
    cpu = re.search(r'model name\s*: (.*)', open('/proc/cpuinfo').read())
    print('%s, cores %s, %d rounds of %g s; %s\n' % (cpu[1] if cpu else 'unknown processor', a.cores, a.rounds, a.seconds,
                                                     a.peers.replace(',', ', ')))
    show(COLUMNS)
    show(['-' * w for w in WIDTHS])
    failed = crowded_any = False
    with open(a.work + '/raw.txt', 'w') as log:
        for name in names:
            table, crowded, sizes = measure(a, name, log)
            show_rows(name, table, crowded)
            crowded_any = crowded_any or bool(crowded)
            failed = failed or not table or any(len(row.get('ours', ())) < a.rounds for row in table.values())
            if len(sizes) > 1:
                failed = True
                print('run.sh: %s is not the same network everywhere: (macs, params) %s' % (name, sorted(sizes)), file=sys.stderr)
    if crowded_any:
        print('\n* others used more than %.0f %% of the cores meanwhile' % (100 * BUSY))
    print('\nEvery line of every program: %s/raw.txt' % a.work)
    return failed


if __name__ == '__main__':
    sys.exit(main())
