// The Advanced drawer, named as the command line's flags are, and links that restore what it says.

/** `own`: the model has a default for it. `text`, `choices` or a number with `min`, `max` and `step`. */
const FIELDS = [
  { flag: 'steps', min: 1, max: 200, step: 1, hint: 'Denoising steps. More take longer and change less and less.', own: true },
  { flag: 'guidance', min: 0, max: 30, step: 'any', hint: 'How strictly the prompt is followed; 1 is without guidance, and twice as fast.', own: true },
  { flag: 'id-scale', min: 0, max: 5, step: 'any', hint: 'Strength of the identity; 0 is without.', own: true },
  { flag: 'num-zero', min: 0, max: 64, step: 1, hint: 'Zero tokens that draw attention away from the face: more follow the prompt more.', own: true },
  { flag: 'ortho', choices: ['off', 'v1', 'v2'], hint: 'How the identity is kept from disturbing the rest of the picture.', own: true },
  { flag: 'seed', min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, value: 0, hint: 'The same seed and settings give the same picture, here and on the command line.' },
  { flag: 'width', min: 8, max: 4096, step: 'any', hint: 'Pixels, a multiple of 8. Models are good at the size they were made for.', own: true },
  { flag: 'height', min: 8, max: 4096, step: 'any', hint: 'Pixels, a multiple of 8.', own: true },
  { flag: 'sampler', choices: ['dpmpp_2m', 'dpmpp_sde', 'euler'], hint: 'The solver. dpmpp_sde takes two calls a step.', own: true },
  { flag: 'spacing', choices: ['', 'karras', 'trailing'], hint: 'Where the noise levels lie.', own: true },
  { flag: 'dtype', choices: ['f32', 'f16'], value: 'f32', hint: 'Numbers on the device: f16 takes half the memory.' },
  { flag: 'quantize', choices: ['none', 'q8', 'q4'], value: 'none', hint: 'Weights in 8 or 4 bits: less memory; q4 is visibly another picture.' },
  { flag: 'id-start', min: 0, max: 1, step: 'any', value: 0, hint: 'Fraction of the steps at which the identity sets in.' },
  { flag: 'id-end', min: 0, max: 1, step: 'any', value: 1, hint: 'Fraction of the steps at which it ends.' },
  { flag: 'negative-prompt', text: true, hint: 'What the picture does not show.', own: true },
];

const element = (id) => document.getElementById(id);
const camel = (flag) => flag.replace(/-(.)/g, (_, letter) => letter.toUpperCase());
const isNumber = (field) => !field.choices && !field.text;

/** What is asked for where neither the person nor the model says. */
let defaults = {};
/** Fields the person or the link has set; the others follow the model. */
const touched = new Set();

/** Makes the fields. */
export function build() {
  for (const field of FIELDS) {
    const { flag, choices, text, hint, min, max, step } = field;
    const box = Object.assign(document.createElement('div'), { className: text ? 'field wide' : 'field' });
    const label = Object.assign(document.createElement('label'), { htmlFor: flag, textContent: `--${flag}` });
    const input = document.createElement(choices ? 'select' : 'input');
    input.id = flag;
    input.setAttribute('aria-describedby', `${flag}-hint`);
    if (choices) {
      input.append(...choices.map((c) => new Option(c || "the sampler's own", c)));
    } else {
      Object.assign(input, text ? { type: 'text' } : { type: 'number', min, max, step, inputMode: step === 1 ? 'numeric' : 'decimal' });
    }
    input.addEventListener('input', () => {
      touched.add(flag);
      // A model's spacing goes with its own sampler; another sampler brings its own.
      if (flag === 'sampler' && !touched.has('spacing')) element('spacing').value = '';
    });
    const row = Object.assign(document.createElement('div'), { className: 'input' });
    row.append(input);
    if (flag === 'seed') {
      const dice = Object.assign(document.createElement('button'), { type: 'button', className: 'quiet', textContent: 'New' });
      dice.id = 'new-seed';
      dice.setAttribute('aria-label', 'A new seed');
      dice.addEventListener('click', () => set('seed', Math.floor(Math.random() * 2 ** 32)));
      row.append(dice);
    }
    const says = Object.assign(document.createElement('p'), { className: 'hint', id: `${flag}-hint`, textContent: hint });
    box.append(label, row, says);
    element('fields').append(box);
    input.value = field.value ?? '';
  }
}

/** Sets a field as if the person had. */
export function set(flag, value) {
  element(flag).value = value;
  touched.add(flag);
}

/** Fills in the model's defaults where nobody has set another value. */
export function follow(model) {
  defaults = model;
  for (const { flag, own } of FIELDS) {
    if (own && !touched.has(flag)) element(flag).value = model[camel(flag)] ?? '';
  }
}

/** Forgets what the person has set. */
export function reset() {
  touched.clear();
  for (const { flag, value, own } of FIELDS) {
    if (!own) element(flag).value = value;
  }
  follow(defaults);
}

/** The options for `generate`; what is empty is the model's own. An error names the field that cannot be used. */
export function collect() {
  const options = { prompt: element('prompt').value.trim() };
  if (!options.prompt) throw wrong('prompt', 'The prompt is empty. Say what the picture shows, or take some of the words below it.');
  for (const field of FIELDS) {
    const input = element(field.flag);
    if (isNumber(field) && !input.checkValidity()) throw wrong(field.flag, `--${field.flag}: ${input.validationMessage}`);
    if (input.value === '' && !field.text) continue;
    options[camel(field.flag)] = isNumber(field) ? Number(input.value) : input.value;
  }
  return options;
}

function wrong(field, message) {
  return Object.assign(new Error(message), { name: 'SettingsError', field });
}

/** The page's address with all settings behind the hash, which browsers send to nobody. Never a photo. */
export function link() {
  const words = new URLSearchParams({ prompt: element('prompt').value });
  for (const { flag } of FIELDS) words.set(flag, element(flag).value);
  if (element('compare').checked) words.set('compare', '1');
  for (const id of ['model-sdxl', 'model-adapter', 'model-faces']) {
    if (element(id).value) words.set(id, element(id).value);
  }
  return `${location.origin}${location.pathname}#${words}`;
}

/** Restores what a link says. Addresses of models are filled in but not fetched: that takes the person's own click. */
export function restore(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ''));
  if (!words.has('prompt')) return;
  element('prompt').value = words.get('prompt');
  element('compare').checked = words.get('compare') === '1';
  for (const id of ['model-sdxl', 'model-adapter', 'model-faces']) {
    if (words.has(id)) element(id).value = words.get(id);
  }
  for (const { flag, choices } of FIELDS) {
    if (words.has(flag) && (!choices || choices.includes(words.get(flag)))) set(flag, words.get(flag));
  }
}
