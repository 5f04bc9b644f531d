// The conversation is kept in this tab: its pictures are too large for session storage, so they lie in the browser's
// data base under a name that only this tab knows, and go when the tab begins anew.

const NAME = "foveal";
const SHELF = "talks";
let tab = sessionStorage.getItem("tab") || named();

function named() {
  const name = crypto.randomUUID?.() || String(Date.now() + Math.random());
  sessionStorage.setItem("tab", name);
  return name;
}

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function shelf(mode) {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(SHELF);
  return (await finished(opening)).transaction(SHELF, mode).objectStore(SHELF);
}

export async function keep(turns) {
  const own = tab; // the tab may begin anew meanwhile
  await finished((await shelf("readwrite")).put({ turns, at: Date.now() }, own));
}

/** Begins anew: under another name at once, whatever becomes of what the old one holds. */
export async function forget() {
  const old = tab;
  tab = named();
  await finished((await shelf("readwrite")).delete(old));
}

/** The turns of this tab, and an end to those of tabs that were not used for a day. */
export async function kept() {
  const store = await shelf("readwrite");
  const [names, talks] = await Promise.all([finished(store.getAllKeys()), finished(store.getAll())]);
  names.forEach((name, i) => {
    if (name !== tab && talks[i].at < Date.now() - 864e5) store.delete(name);
  });
  return talks[names.indexOf(tab)]?.turns ?? [];
}
