// Runs the kernels' suite, off the page's thread: references are computed on the processor.

import { nameOf } from './conformance.mjs';
import init, { Conformance } from './pulid/pulid_wasm.js';

let stopped = false;

async function run(filter) {
  stopped = false;
  let suite;
  try {
    await init();
    // The browser tells more of its device than wgpu hears.
    const adapter = await navigator.gpu?.requestAdapter();
    const device = adapter ? nameOf(adapter) : '';
    suite = await Conformance.open(filter, device);
    const ids = suite.ids();
    postMessage({ type: 'begun', all: ids.length, device });
    for (let i = 0; i < ids.length && !stopped; i++) {
      postMessage({ type: 'entry', entry: await suite.run(i), done: i + 1, all: ids.length });
      // Checks that are skipped wait for nothing; a request to stop must still be heard.
      if (i % 50 === 0) await new Promise((resolve) => { setTimeout(resolve); });
    }
    const json = suite.json();
    postMessage({ type: 'ended', json, html: suite.html(), stopped });
  } catch (error) {
    postMessage({ type: 'failed', message: error.message ?? String(error) });
  } finally {
    suite?.free();
  }
}

addEventListener('message', ({ data }) => {
  if (data.type === 'stop') stopped = true;
  else run(data.filter);
});
