// The list of kept weights.

import { amount } from './progress.js';
import { PulidStore } from './pulid/index.js';

const element = (id) => document.getElementById(id);

/** Shows what is kept. `failed(error)` hears what cannot be listed or deleted. */
export async function list(failed) {
  let models = [];
  try {
    models = await PulidStore.list();
    const { usage, quota } = await PulidStore.usage();
    element('usage').textContent = quota ? `${amount(usage)} of the ${amount(quota)} that the browser lets this site keep.` : '';
  } catch (error) {
    element('usage').textContent = error.message;
  }
  element('kept').replaceChildren(...models.map((model) => {
    const item = document.createElement('li');
    const what = document.createElement('div');
    what.append(Object.assign(document.createElement('strong'), { textContent: model.name }));
    what.append(` ${amount(model.bytes)}${model.complete ? '' : ', not whole yet'}`);
    what.append(Object.assign(document.createElement('span'), { className: 'hint url', textContent: model.url }));
    const button = Object.assign(document.createElement('button'), { type: 'button', className: 'quiet', textContent: 'Delete' });
    button.setAttribute('aria-label', `Delete ${model.name}`);
    button.addEventListener('click', () => remove([model.name], failed));
    item.append(what, button);
    return item;
  }));
  if (models.length === 0) element('kept').append(Object.assign(document.createElement('li'), { className: 'hint', textContent: 'None.' }));
  element('delete-kept').disabled = models.length === 0;
}

/** Deletes these models, or all. */
export async function remove(names, failed) {
  element('delete-kept').disabled = true;
  try {
    for (const name of names ?? (await PulidStore.list()).map((m) => m.name)) await PulidStore.delete(name);
  } catch (error) {
    failed(error);
  }
  await list(failed);
}
