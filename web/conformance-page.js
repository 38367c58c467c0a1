// The kernels' page: shows what conformance-worker.js finds. `conformance.html#matmul` runs the checks with `matmul` in their id at once.

const element = (id) => document.getElementById(id);
const worker = new Worker('conformance-worker.js', { type: 'module' });
/** Passed checks that are shown at most. */
const SHOWN = 20;

function say(state, text) {
  element('status').dataset.state = state;
  element('status').textContent = text;
  element('start').disabled = state === 'running';
  element('stop').hidden = state !== 'running';
}

function row(entry) {
  const tr = document.createElement('tr');
  tr.className = entry.outcome;
  const worst = entry.worst == null ? '' : entry.worst.toFixed(3);
  for (const text of [entry.id, entry.outcome.replace('expected_fail', 'fail as expected'), worst, entry.detail ?? '']) {
    tr.append(Object.assign(document.createElement('td'), { textContent: text }));
  }
  return tr;
}

function show(entry) {
  const count = element(entry.outcome);
  count.textContent = Number(count.textContent) + 1;
  if (entry.outcome === 'skip') return;
  const rows = element('rows');
  if (entry.outcome === 'pass') {
    const passed = rows.querySelectorAll('.pass');
    if (passed.length >= SHOWN) passed[0].remove();
    rows.append(row(entry));
  } else {
    rows.prepend(row(entry));
  }
}

function offer(id, text, type) {
  const link = element(id);
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.hidden = false;
}

let began = 0;

worker.addEventListener('message', ({ data }) => {
  switch (data.type) {
    case 'begun':
      element('device').textContent = data.device ? `Device: ${data.device}` : '';
      began = performance.now();
      break;
    case 'entry': {
      show(data.entry);
      element('progress').value = data.done / data.all;
      const seconds = (performance.now() - began) / 1000;
      const left = Math.round(seconds / data.done * (data.all - data.done));
      say('running', `${data.done} of ${data.all}${seconds > 2 ? `, about ${left} s left` : ''}`);
      break;
    }
    case 'ended':
      offer('save-json', data.json, 'application/json');
      offer('save-html', data.html, 'text/html');
      window.report = JSON.parse(data.json);
      say('done', data.stopped ? 'Stopped; the report holds what was run.' : 'Done.');
      break;
    case 'failed':
      say('failed', data.message);
      break;
    default:
  }
});
worker.addEventListener('error', (event) => say('failed', `The suite did not start: ${event.message || 'its files could not be loaded'}`));

function run() {
  for (const id of ['pass', 'fail', 'skip', 'expected_fail']) element(id).textContent = '0';
  element('rows').replaceChildren();
  element('progress').value = 0;
  say('running', 'Opening the device');
  worker.postMessage({ type: 'run', filter: element('filter').value.trim() });
}

element('form').addEventListener('submit', (event) => {
  event.preventDefault();
  history.replaceState(null, '', `#${encodeURIComponent(element('filter').value.trim())}`);
  run();
});
element('stop').addEventListener('click', () => worker.postMessage({ type: 'stop' }));
if (location.hash.length > 1) {
  element('filter').value = decodeURIComponent(location.hash.slice(1));
  run();
}
