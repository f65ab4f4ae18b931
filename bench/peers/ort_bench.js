// ort_bench.js NETWORK FILE.onnx SIDE CLASSES BATCH,… CORE,… SECONDS: ONNX Runtime, lines as bench_net
// prints them. A run computes on one of node's own workers, whichever is free, and on the library's
// threads: no thread is pinned, the process keeps to the cores it was given and the system spreads them.
'use strict';
const ort = require('onnxruntime-node');
const [name, file, side, classes, batches, cores, seconds] = process.argv.slice(2);
const threads = cores.split(',').length;

// Milliseconds of single runs, each a mean over at least `shortest`; as nn_plan_time.
async function measure(run, shortest = 2, warm = 300) {
  const sample = async (n) => {
    const start = process.hrtime.bigint();
    for (let i = 0; i < n; i++) await run();
    return Number(process.hrtime.bigint() - start) / 1e6 / n;
  };
  await run();
  let best = await sample(1);
  for (const end = Date.now() + warm; Date.now() < end;) best = Math.min(best, await sample(1));
  const n = Math.ceil(shortest / best), ms = [];
  for (let left = Math.min(300, Math.max(3, 1e3 * seconds / (n * best))); left >= 1; left--) ms.push(await sample(n));
  return ms.sort((a, b) => a - b);
}

(async () => {
  const session = await ort.InferenceSession.create(file, {
    executionProviders: ['cpu'], intraOpNumThreads: threads, interOpNumThreads: 1,
    executionMode: 'sequential', graphOptimizationLevel: 'all',
  });
  for (const batch of batches.split(',').map(Number)) {
    const x = Float32Array.from({ length: batch * 3 * side * side }, () => 2 * Math.random() - 1);
    const feeds = { x: new ort.Tensor('float32', x, [batch, 3, +side, +side]) };
    const y = { y: new ort.Tensor('float32', new Float32Array(batch * classes), [batch, +classes]) };
    const ms = await measure(() => session.run(feeds, y)), n = ms.length, at = (i) => ms[Math.floor(i)].toFixed(4);
    const median = (ms[n >> 1] + ms[(n - 1) >> 1]) / 2;
    console.log(`ort model=${name} mode=infer batch=${batch} threads=${threads} way=${ort.env.versions.node} `
      + `median_ms=${median.toFixed(4)} p10_ms=${at(n / 10)} p90_ms=${at((n - 1) * 0.9)} samples=${n}`);
  }
})().catch((e) => { console.error(`ort_bench: ${e.message}`); process.exitCode = 1; });
