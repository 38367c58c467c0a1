// The page: the first user of the package beside it.

import { Pulid } from './pulid/index.js';
import { faces } from './faces.js';
import * as kept from './kept.js';
import { listener, state } from './progress.js';
import * as settings from './settings.js';
import * as trouble from './trouble.js';

const element = (id) => document.getElementById(id);

/** Words that the mini models were trained on. */
const CHIPS = {
  style: ['a photo', 'a pencil sketch', 'an oil painting', 'a neon picture', 'a comic picture', 'a watercolor painting'],
  face: ['neutral expression', 'smiling', 'surprised', 'sad', 'angry'],
  place: ['in a garden', 'at the beach', 'in a city street', 'in a library', 'in a studio', 'under a night sky', 'in the snow', 'in an autumn forest'],
  light: ['soft light', 'warm light', 'cold light', 'dramatic side light'],
  clothes: ['red sweater', 'white shirt', 'black suit', 'blue hoodie', 'green t-shirt', 'yellow raincoat', 'striped shirt', 'grey turtleneck']
    .map((c) => `wearing a ${c}`),
};

/** What tests and curious people look at. */
const page = { pulid: null, lastResult: null };
window.pulidPage = page;

let models = {};
/** Resolves to the engine; null before the first start and after a failed one. */
let starting = null;
/** Cancels what runs. */
let abort = null;
/** The embedded person of the photos that are there: reading a person anew for every image would be wasted time. */
let person = null;

/** The engine, started if it is not. */
function engine() {
  starting ??= start().catch((error) => {
    starting = null;
    throw error;
  });
  return starting;
}

async function start() {
  abort = new AbortController();
  working('loading');
  state('loading', 'Starting');
  try {
    const pulid = await Pulid.create({
      models, baseUrl: new URL('models/', document.baseURI), onProgress: listener(), signal: abort.signal,
    });
    page.pulid = pulid;
    pulid.addEventListener('lost', ({ detail }) => {
      if (page.pulid !== pulid) return;
      page.pulid = null;
      starting = null;
      failed(detail);
    });
    settings.follow(pulid.defaults);
    const { name, driver, shaderF16 } = pulid.device;
    // Most browsers keep the device's name to themselves.
    const device = [name, driver].filter(Boolean).join(', ') || 'your graphics device';
    element('device').textContent = `Computed by WebGPU on ${device}${shaderF16 ? ', with 16-bit shaders' : ''}.`;
    state('idle', 'Ready');
    people.refresh();
    return pulid;
  } finally {
    working(false);
    kept.list(failed);
  }
}

async function stop() {
  const pulid = page.pulid;
  page.pulid = null;
  starting = null;
  await pulid?.close();
}

/** `yes`: 'loading', 'working' or false. */
function working(yes) {
  element('generate').disabled = Boolean(yes);
  element('generate').textContent = { loading: 'Getting ready', working: 'Working' }[yes] ?? 'Generate';
  element('cancel').hidden = !yes;
  element('save-identity').disabled = Boolean(yes) || !(people.photos().length || people.identity());
}

function failed(error) {
  if (error.name === 'AbortError') {
    state('cancelled', 'Cancelled', 'Nothing was changed. Press Generate to begin again.');
    return;
  }
  state('error', 'That did not work');
  trouble.show(error, {
    again: () => (page.pulid && lastRun ? lastRun() : begin()),
    anew: () => stop().then(begin),
    photo: () => element('photos').click(),
    smaller: () => {
      settings.set('quantize', 'q8');
      openSettings('width');
      return stop().then(begin);
    },
    ownSize: () => {
      settings.set('width', page.pulid?.defaults.width ?? 1024);
      settings.set('height', page.pulid?.defaults.height ?? 1024);
      return run();
    },
    f32: () => {
      settings.set('dtype', 'f32');
      return run();
    },
    settings: () => openSettings(error.field ?? 'steps'),
    defaults: () => settings.reset(),
    kept: () => element('machine').scrollIntoView(),
    mini: Object.keys(models).length ? useMini : null,
  });
}

function openSettings(field) {
  if (field !== 'prompt') element('advanced').open = true;
  element(field).focus();
}

/** Starts, and says so if that fails. */
async function begin() {
  trouble.hide();
  try {
    await engine();
  } catch (error) {
    failed(error);
  }
}

const people = faces({
  crop: async (file, signal) => {
    // A start that failed has said so already, and is not repeated for each photo; the next start asks for the crops again.
    const pulid = await starting?.catch(() => null);
    if (!pulid) throw new DOMException('There is no engine yet.', 'AbortError');
    return pulid.crop(file, { signal });
  },
  changed: () => {
    person = null;
    // What was wrong with another photo is no longer of interest.
    if (element('error').dataset.name === 'PhotoError') {
      trouble.hide();
      if (element('status').dataset.state === 'error' && page.pulid) state('idle', 'Ready');
    }
    element('save-identity').disabled = element('generate').disabled || !(people.photos().length || people.identity());
  },
  failed: (error) => {
    // While an image is being made its own status stays.
    if (abort && !abort.signal.aborted && element('generate').disabled) trouble.show(error, { photo: () => element('photos').click() });
    else failed(error);
  },
});

/** The person as an identity file: what was loaded, or read from the photos; null if there is neither. */
async function identity(pulid, signal) {
  if (people.identity()) return people.identity();
  const photos = people.photos();
  if (photos.length === 0) return null;
  person ??= await pulid.embed(photos, { signal, onProgress: listener() });
  return person;
}

/** What "Try again" repeats. */
let lastRun = null;

/** Runs something with the engine that can be cancelled. */
async function busy(work) {
  if (element('generate').disabled) return;
  lastRun = () => busy(work);
  trouble.hide();
  try {
    const pulid = await engine();
    abort = new AbortController();
    working('working');
    state('working', 'Beginning');
    await work(pulid, abort.signal);
  } catch (error) {
    failed(error);
  } finally {
    working(false);
  }
}

async function run() {
  let options;
  try {
    options = settings.collect();
  } catch (error) {
    failed(error);
    return;
  }
  const compare = element('compare').checked;
  await busy(async (pulid, signal) => {
    // On a phone the image is below the form; beside it, it may be partly out of sight.
    if (matchMedia('(max-width: 899px)').matches) element('picture').scrollIntoView({ block: 'start' });
    else element('frame').scrollIntoView({ block: 'nearest' });
    for (const id of ['frame-without', 'with-caption']) element(id).hidden = true;
    const who = await identity(pulid, signal);
    const both = compare && who;
    const make = (extra, prefix) => pulid.generate({ ...options, ...extra, signal, onProgress: listener(prefix) });
    const made = await make(who ? { identity: who } : {}, both ? 'With identity' : '');
    const without = both ? await make({}, 'Without identity') : null;
    await show(made, without, options);
  });
}

async function show(made, without, options) {
  page.lastResult = { ...made, without };
  const place = async (img, blob, alt) => {
    const before = img.src;
    img.src = URL.createObjectURL(blob);
    img.alt = alt;
    await img.decode();
    if (before) URL.revokeObjectURL(before);
  };
  await place(element('result'), made.images[0], options.prompt);
  if (without) await place(element('result-without'), without.images[0], `${options.prompt}, without the identity`);
  element('result').hidden = false;
  element('empty').hidden = true;
  element('frame-without').hidden = !without;
  element('with-caption').hidden = !without;
  element('download').href = element('result').src;
  element('download').download = `pulid-${options.seed ?? 0}.png`;
  element('download-without').hidden = !without;
  if (without) element('download-without').href = element('result-without').src;
  element('placard-prompt').textContent = options.prompt;
  const size = `${element('result').naturalWidth} × ${element('result').naturalHeight}`;
  const steps = options.steps ? `, ${options.steps} ${options.steps === 1 ? 'step' : 'steps'}` : '';
  element('placard-text').textContent = `${size}, seed ${options.seed ?? 0}${steps}. The parameters are in the file.`;
  element('placard').hidden = false;
  state('done', 'Done');
}

function useModels() {
  const given = {};
  for (const part of ['sdxl', 'adapter', 'faces']) {
    const url = element(`model-${part}`).value.trim();
    if (url) given[part] = url;
  }
  return change(given);
}

function useMini() {
  return change({});
}

async function change(given) {
  abort?.abort();
  models = given;
  person = null;
  lastRun = null;
  const own = Object.keys(given).length > 0;
  element('use-mini').hidden = !own;
  element('mini-note').hidden = own;
  element('chips-hint').hidden = own;
  if (own) navigator.storage?.persist?.(); // Gigabytes are worth asking the browser not to clear them.
  element('picture').scrollIntoView({ block: 'nearest' });
  await starting?.catch(() => {});
  await stop();
  await begin();
}

/** Adds words to the prompt; of a kind that is there already, in the other's place. */
function say(kind, words) {
  const prompt = element('prompt');
  const of = kind === 'style' ? ' of a person' : '';
  const parts = prompt.value.split(',').map((p) => p.trim()).filter(Boolean);
  const here = parts.findIndex((p) => CHIPS[kind].some((c) => p === c + of || p.startsWith(`${c} of`)));
  if (here >= 0 && parts[here] === words + of && kind !== 'style') parts.splice(here, 1);
  else if (here >= 0) parts[here] = words + of;
  else if (kind === 'style') parts.unshift(words + of);
  else parts.push(words);
  prompt.value = parts.join(', ');
}

function chips() {
  for (const [kind, list] of Object.entries(CHIPS)) {
    const group = Object.assign(document.createElement('div'), { className: 'group' });
    group.setAttribute('role', 'group');
    group.setAttribute('aria-label', `Words for the prompt: ${kind}`);
    for (const words of list) {
      const button = Object.assign(document.createElement('button'), { type: 'button', className: 'chip', textContent: words.replace('wearing a ', '') });
      button.addEventListener('click', () => say(kind, words));
      group.append(button);
    }
    element('chips').append(group);
  }
}

/** A short answer beside the buttons. */
function answer(text) {
  element('said').textContent = text;
  setTimeout(() => { element('said').textContent = ''; }, 4000);
}

element('form').addEventListener('submit', (event) => {
  event.preventDefault();
  run();
});
// The browser's own messages would hide behind a closed drawer; `settings.collect` has its own.
element('form').noValidate = true;
element('cancel').addEventListener('click', () => {
  element('stage').textContent = 'Cancelling';
  abort?.abort();
});
element('copy-link').addEventListener('click', async () => {
  const url = settings.link();
  history.replaceState(null, '', url);
  try {
    await navigator.clipboard.writeText(url);
    answer('Copied. It holds the settings, no photo.');
  } catch {
    answer('The address bar now has the link.');
  }
});
element('save-identity').addEventListener('click', () => busy(async (pulid, signal) => {
  const blob = await identity(pulid, signal);
  const a = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob), download: 'identity.safetensors' });
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 60_000);
  state(page.lastResult ? 'done' : 'idle', 'Saved identity.safetensors');
}));
element('reset').addEventListener('click', () => settings.reset());
element('delete-kept').addEventListener('click', () => kept.remove(null, failed));
element('models').addEventListener('submit', (event) => {
  event.preventDefault();
  useModels();
});
element('use-mini').addEventListener('click', useMini);
addEventListener('hashchange', () => settings.restore(location.hash));

settings.build();
chips();
settings.restore(location.hash);
begin();
// After a first visit the page itself is there without a connection too.
if (navigator.serviceWorker) addEventListener('load', () => navigator.serviceWorker.register('sw.js').catch(() => {}));
