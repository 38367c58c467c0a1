// The benchmark's kernels for ONNX Runtime Web: models made here, in ONNX's own encoding, and timed on the GPU.

const text = new TextEncoder();

/** Parts one behind another: bytes, texts and lists of them. */
function join(...parts) {
  const all = parts.flat(Infinity).map((p) => (typeof p === 'string' ? text.encode(p) : p));
  const bytes = new Uint8Array(all.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of all) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

// Protocol Buffers: https://protobuf.dev/programming-guides/encoding. Numbers of fields are those of onnx.proto.
function varint(number) {
  const bytes = [];
  for (let left = number; ; left = Math.floor(left / 128)) {
    if (left < 128) return Uint8Array.from([...bytes, left]);
    bytes.push((left % 128) + 128);
  }
}
const integer = (field, value) => join(varint(field * 8), varint(value));
function bytesField(field, ...parts) {
  const bytes = join(...parts);
  return join(varint(field * 8 + 2), varint(bytes.length), bytes);
}

const FLOAT = 1;
const INT64 = 7;
const attribute = {
  integer: (name, value) => bytesField(5, bytesField(1, name), integer(3, value), integer(20, 2)),
  integers: (name, values) => bytesField(5, bytesField(1, name), values.map((v) => integer(8, v)), integer(20, 7)),
};
function node(operator, inputs, output, attributes = [], domain = []) {
  const names = [inputs.map((name) => bytesField(1, name)), bytesField(2, output)];
  return bytesField(1, names, bytesField(4, operator), attributes, domain.length ? bytesField(7, domain) : []);
}
function initializer(name, shape, values) {
  const raw = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const type = values instanceof BigInt64Array ? INT64 : FLOAT;
  return bytesField(5, shape.map((n) => integer(1, n)), integer(2, type), bytesField(8, name), bytesField(9, raw));
}
function port(field, name, shape) {
  const extents = shape.map((n) => bytesField(1, integer(1, n)));
  return bytesField(field, bytesField(1, name), bytesField(2, bytesField(1, integer(1, FLOAT), bytesField(2, extents))));
}
function model(nodes, initializers, shape) {
  const graph = bytesField(7, nodes, bytesField(2, 'bench'), initializers, port(11, 'x', shape), port(12, 'y', shape));
  const sets = [bytesField(8, bytesField(1, ''), integer(2, 20)), bytesField(8, bytesField(1, 'com.microsoft'), integer(2, 1))];
  // IR version 9 is that of opset 20.
  return join(integer(1, 9), graph, sets);
}

/** Nodes that lead from `from` to `to` over this kernel, `length` times. */
function chain(length, from, to, step) {
  const name = (i) => (i === 0 ? from : i === length ? to : `${from}_${i}`);
  return Array.from({ length }, (_, i) => step(name(i), name(i + 1)));
}

/** A filter of rows, columns, inputs, outputs as ONNX has it: outputs, inputs, rows, columns. */
function asOnnxFilter(values, [rows, columns, inputs, outputs]) {
  const turned = new Float32Array(values.length);
  let i = 0;
  for (let at = 0; at < rows * columns; at++) {
    for (let input = 0; input < inputs; input++) {
      for (let output = 0; output < outputs; output++) turned[(output * inputs + input) * rows * columns + at] = values[i++];
    }
  }
  return turned;
}

/** Self-attention as products and a softmax, which every version of ONNX has. */
function attentionOfParts([batch, tokens, channels], heads, length) {
  const width = channels / heads;
  const turned = (from, to, order) => node('Transpose', [from], to, [attribute.integers('perm', order)]);
  const nodes = chain(length, 'x', 'y', (a, b) => [
    node('Reshape', [a, 'split'], `${b}_split`),
    turned(`${b}_split`, `${b}_v`, [0, 2, 1, 3]),
    turned(`${b}_split`, `${b}_k`, [0, 2, 3, 1]),
    node('Mul', [`${b}_v`, 'scale'], `${b}_q`),
    node('MatMul', [`${b}_q`, `${b}_k`], `${b}_scores`),
    node('Softmax', [`${b}_scores`], `${b}_p`, [attribute.integer('axis', 3)]),
    node('MatMul', [`${b}_p`, `${b}_v`], `${b}_heads`),
    turned(`${b}_heads`, `${b}_joined`, [0, 2, 1, 3]),
    node('Reshape', [`${b}_joined`, 'join'], b),
  ]);
  const initializers = [
    initializer('split', [4], BigInt64Array.of(...[batch, tokens, heads, width].map(BigInt))),
    initializer('join', [3], BigInt64Array.of(...[batch, tokens, channels].map(BigInt))),
    initializer('scale', [], Float32Array.of(width ** -0.5)),
  ];
  return model(nodes, initializers, [batch, tokens, channels]);
}

/**
 * A kernel of the list (bench-worker.js) `length` times, each on the result of the one before, so that what a run costs besides is shared.
 * Activations come and go with channels last, as here; a convolution's are turned before the first and after the last. Attention is one
 * operator, or with `parts` several.
 */
function modelOf({ operator, name, shapes, operands, parts }, length) {
  if (operator === 'matmul') {
    const nodes = chain(length, 'x', 'y', (a, b) => node('MatMul', [a, 'w'], b));
    return model(nodes, initializer('w', shapes[1], operands[1]), shapes[0]);
  }
  if (operator === 'conv2d') {
    const [rows, columns, inputs, outputs] = shapes[1];
    const kernel = [attribute.integers('kernel_shape', [rows, columns]),
      attribute.integers('pads', [rows >> 1, columns >> 1, rows >> 1, columns >> 1])];
    const nodes = [
      node('Transpose', ['x'], 'first', [attribute.integers('perm', [0, 3, 1, 2])]),
      ...chain(length, 'first', 'last', (a, b) => node('Conv', [a, 'w'], b, kernel)),
      node('Transpose', ['last'], 'y', [attribute.integers('perm', [0, 2, 3, 1])]),
    ];
    return model(nodes, initializer('w', [outputs, inputs, rows, columns], asOnnxFilter(operands[1], shapes[1])), shapes[0]);
  }
  const heads = Number(/h=(\d+)/.exec(name)[1]);
  if (parts) return attentionOfParts(shapes[0], heads, length);
  const count = attribute.integer('num_heads', heads);
  return model(chain(length, 'x', 'y', (a, b) => node('MultiHeadAttention', [a, a, a], b, count, 'com.microsoft')), [], shapes[0]);
}

/** Kernels in a model that is timed. */
const LENGTH = 4;
/** Milliseconds that a sample shall fill. */
const SAMPLE = 100;

/** ONNX Runtime Web where the site holds it (`cargo xtask bench-page` puts it there), else why not. */
export async function loadOnnx() {
  try {
    const ort = await import('./onnxruntime-web/ort.webgpu.min.mjs');
    // Threads of the processor do nothing for WebGPU, and need a page of their own origin.
    ort.env.wasm.numThreads = 1;
    return { ort };
  } catch (error) {
    return { missing: `ONNX Runtime Web is not here (${error.message}): cargo xtask bench-page fetches it.` };
  }
}

/** A model on the GPU with its input there. */
async function session(ort, kernel, length) {
  const bytes = modelOf(kernel, length);
  const [shape, values] = [kernel.shapes[0], kernel.operands[0]];
  const opened = await ort.InferenceSession.create(bytes, { executionProviders: ['webgpu'], preferredOutputLocation: 'gpu-buffer' });
  const device = await ort.env.webgpu.device;
  const buffer = device.createBuffer({ size: values.byteLength, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(buffer, 0, values);
  const x = ort.Tensor.fromGpuBuffer(buffer, { dataType: 'float32', dims: shape });
  return {
    device,
    run: async () => (await opened.run({ x })).y,
    async end() {
      await opened.release();
      buffer.destroy();
    },
  };
}

/** What one execution of a kernel gives: `{ operator, name, shapes, operands, parts }`, as in `modelOf`. */
export async function onnxResult(ort, kernel) {
  const one = await session(ort, kernel, 1);
  try {
    const y = await one.run();
    const values = await y.getData();
    y.dispose();
    return values;
  } finally {
    await one.end();
  }
}

/** Milliseconds of one execution in each sample, after a warm-up. */
export async function onnxTimes(ort, kernel, samples) {
  const many = await session(ort, kernel, LENGTH);
  const sample = async (runs) => {
    const begun = performance.now();
    for (let i = 0; i < runs; i++) (await many.run()).dispose();
    await many.device.queue.onSubmittedWorkDone();
    return performance.now() - begun;
  };
  try {
    await sample(1);
    const once = await sample(1);
    const runs = Math.min(50, Math.max(1, Math.ceil(SAMPLE / once)));
    const times = runs === 1 ? [once] : [];
    while (times.length < samples) times.push(await sample(runs));
    return times.map((ms) => ms / runs / LENGTH);
  } finally {
    await many.end();
  }
}
