// The page of times: shows what bench-worker.js measures. `bench.html#matmul` runs the small sizes with `matmul` in their name at once,
// `bench.html?sizes=sdxl#*` all of SDXL's.

const element = (id) => document.getElementById(id);
const worker = new Worker('bench-worker.js', { type: 'module' });
const HEAD = ['kernel', 'variant', 'ours, ms', 'GFLOP/s', 'ONNX Runtime Web, ms', 'GFLOP/s', 'ratio', 'difference'];
let rows = [];
let about = '';

function say(state, text) {
  element('status').dataset.state = state;
  element('status').textContent = text;
  element('start').disabled = state === 'running';
  element('stop').hidden = state !== 'running';
  element('copy').hidden = rows.length === 0;
}

const number = (value) => (value === undefined ? '' : Number(value.toPrecision(3)).toString());
const speed = (row, ms) => (ms === undefined ? undefined : row.flops / ms / 1e6);

function cells(row) {
  return [row.kernel, row.variant, number(row.ours), number(speed(row, row.ours)), number(row.theirs),
    number(speed(row, row.theirs)), number(row.ratio), row.difference === undefined ? '' : row.difference.toExponential(1)];
}

function show(row) {
  rows.push(row);
  const tr = document.createElement('tr');
  for (const text of cells(row)) tr.append(Object.assign(document.createElement('td'), { textContent: text }));
  element('rows').append(tr);
  if (row.note) element('note').textContent += ` ${row.kernel}: ${row.note}`;
}

/** The table as Markdown. */
function markdown() {
  const line = (list) => `| ${list.join(' | ')} |`;
  return [about, '', line(HEAD), line(HEAD.map((_, i) => (i < 2 ? '---' : '---:'))), ...rows.map((row) => line(cells(row))),
    ...rows.filter((row) => row.note).map((row) => `\n${row.kernel}: ${row.note}`)].join('\n');
}

worker.addEventListener('message', ({ data }) => {
  switch (data.type) {
    case 'begun':
      about = `${data.device || 'a device without a name'}${data.onnx ? `, ONNX Runtime Web ${data.onnx}` : ''}, ${navigator.userAgent}`;
      element('device').textContent = about;
      element('note').textContent = data.missing ?? '';
      break;
    case 'kernel':
      element('progress').value = data.done / data.all;
      say('running', `${data.done + 1} of ${data.all}: ${data.kernel}`);
      break;
    case 'row':
      show(data.row);
      break;
    case 'ended':
      element('progress').value = 1;
      window.report = { ...data.report, markdown: markdown() };
      say('done', data.stopped ? 'Stopped.' : 'Done.');
      break;
    case 'failed':
      say('failed', data.message);
      break;
    default:
  }
});
worker.addEventListener('error', (event) => say('failed', `The worker did not start: ${event.message || 'its files could not be loaded'}`));

function run() {
  rows = [];
  element('note').textContent = '';
  element('rows').replaceChildren();
  element('progress').value = 0;
  say('running', 'Opening the device');
  worker.postMessage({ type: 'run', sizes: element('sizes').value, filter: element('filter').value.trim() });
}

element('form').addEventListener('submit', (event) => {
  event.preventDefault();
  history.replaceState(null, '', `?sizes=${element('sizes').value}#${encodeURIComponent(element('filter').value.trim() || '*')}`);
  run();
});
element('stop').addEventListener('click', () => worker.postMessage({ type: 'stop' }));
element('copy').addEventListener('click', async () => {
  await navigator.clipboard.writeText(markdown());
  element('copy').textContent = 'Copied';
});
const asked = new URLSearchParams(location.search).get('sizes');
if (asked === 'sdxl') element('sizes').value = asked;
if (location.hash.length > 1) {
  element('filter').value = decodeURIComponent(location.hash.slice(1));
  run();
}
