// The Advanced drawer, made from the engine's list of settings, and links that restore what it says.

import { SETTINGS } from './pulid/settings.js';

/** The fields: settings by the names of the command line's flags. */
const FIELDS = SETTINGS.filter(({ page }) => page).map((setting) => ({ ...setting, flag: setting.name.replaceAll('_', '-') }));

const element = (id) => document.getElementById(id);
const isNumber = ({ type }) => type === 'whole' || type === 'number';

/** What is asked for where neither the person nor the model says. */
let defaults = {};
/** Fields the person or the link has set; the others follow the model. */
const touched = new Set();

/** Makes the fields. */
export function build() {
  for (const field of FIELDS) {
    const { name, flag, type, choices, help, min = '', max = '', follows } = field;
    const text = type === 'text';
    const step = type === 'whole' ? 1 : 'any';
    const box = Object.assign(document.createElement('div'), { className: text ? 'field wide' : 'field' });
    const label = Object.assign(document.createElement('label'), { htmlFor: flag, textContent: `--${flag}` });
    const input = document.createElement(choices ? 'select' : 'input');
    input.id = flag;
    input.setAttribute('aria-describedby', `${flag}-hint`);
    if (choices) {
      if (follows) input.append(new Option(`the ${follows}'s own`, ''));
      input.append(...choices.map((c) => new Option(c, c)));
    } else {
      Object.assign(input, text ? { type: 'text' } : { type: 'number', min, max, step, inputMode: step === 1 && min >= 0 ? 'numeric' : 'decimal' });
    }
    input.addEventListener('input', () => {
      touched.add(flag);
      // A model's spacing goes with its own sampler; another sampler brings its own.
      for (const other of FIELDS) {
        if (other.follows === name && !touched.has(other.flag)) element(other.flag).value = '';
      }
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
    const says = Object.assign(document.createElement('p'), { className: 'hint', id: `${flag}-hint`, textContent: help });
    box.append(label, row, says);
    element('fields').append(box);
    // Until the model says its own, an empty field stands for it.
    input.value = field.ofModel ? '' : field.default;
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
  for (const { flag, option, ofModel } of FIELDS) {
    if (ofModel && !touched.has(flag)) element(flag).value = model[option] ?? '';
  }
}

/** Forgets what the person has set. */
export function reset() {
  touched.clear();
  for (const { flag, default: value, ofModel } of FIELDS) {
    if (!ofModel) element(flag).value = value;
  }
  follow(defaults);
}

/** The options for `generate`; what is empty is the model's own. An error names the field that cannot be used. */
export function collect() {
  const options = { prompt: element('prompt').value.trim() };
  if (!options.prompt) throw wrong('prompt', 'The prompt is empty. Say what the image shows, or take some of the words below it.');
  for (const field of FIELDS) {
    const input = element(field.flag);
    if (isNumber(field) && !input.checkValidity()) throw wrong(field.flag, `--${field.flag}: ${input.validationMessage}`);
    // An emptied field says that there is to be none where the model has a text.
    if (input.value === '' && !(field.type === 'text' && defaults[field.option])) continue;
    options[field.option] = isNumber(field) ? Number(input.value) : input.value;
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
  for (const { flag, choices, follows } of FIELDS) {
    const value = words.get(flag);
    if (value === null || (choices && !choices.includes(value) && !(follows && value === ''))) continue;
    set(flag, value);
  }
}
