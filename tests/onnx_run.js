// onnx_run.js FOLDER: ONNX Runtime on what tests/test_onnx.c left there. The file `list` has a line
// NAME C H W N per model: NAME.onnx; NAME.x holds N images, and NAME.y.N and NAME.y.1 become
// the outputs of all of them at once and of the first alone.
'use strict';
const fs = require('fs'), ort = require('onnxruntime-node');
const [folder] = process.argv.slice(2);

(async () => {
  for (const line of fs.readFileSync(`${folder}/list`, 'utf8').trim().split('\n')) {
    const [name, c, h, w, n] = line.split(' ').map((v, i) => (i ? Number(v) : v));
    const bytes = fs.readFileSync(`${folder}/${name}.x`);
    const x = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    const session = await ort.InferenceSession.create(`${folder}/${name}.onnx`, {
      executionProviders: ['cpu'], intraOpNumThreads: 1, interOpNumThreads: 1,
    });
    for (const batch of [n, 1]) {
      const feed = new ort.Tensor('float32', x.slice(0, batch * c * h * w), [batch, c, h, w]);
      const y = (await session.run({ [session.inputNames[0]]: feed }))[session.outputNames[0]];
      if (y.dims[0] !== batch) throw new Error(`${name}: the output is ${y.dims}, the batch ${batch}`);
      fs.writeFileSync(`${folder}/${name}.y.${batch}`, Buffer.from(y.data.buffer, y.data.byteOffset, y.data.byteLength));
    }
    await session.release();
  }
})().catch((e) => { console.error(`onnx_run: ${e.message}`); process.exitCode = 1; });
