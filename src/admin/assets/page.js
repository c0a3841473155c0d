// Refreshes what is live, asks in a dialog instead of on a page of its own, copies ids, keeps relative times true.
// All of it works without this script, by links and forms.
'use strict';
(() => {
  const EVERY = 5000;
  const root = document.documentElement;
  root.classList.add('js');
  const $ = (selector, within = document) => within.querySelector(selector);

  // --- Relative times: by the server's clock, in the server's words (`ago` in time.rs).
  const drift = Date.now() - Date.parse(document.body.dataset.now);
  const ago = (ms) => {
    const s = Math.floor(Math.abs(ms) / 1000);
    const text = s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
    return ms < 0 ? `in ${text}` : `${text} ago`;
  };
  const tick = () => {
    for (const time of document.querySelectorAll('time[data-relative]')) {
      const text = ago(Date.now() - drift - Date.parse(time.dateTime));
      if (time.textContent !== text) time.firstChild.data = text;
    }
  };
  setInterval(() => document.hidden || tick(), 1000);

  // --- Refresh: nodes that are still there stay, so that focus and selection do, too.
  const key = (node) => (node.nodeType === Node.ELEMENT_NODE && node.dataset.key) || null;
  const morph = (from, to) => {
    for (const { name } of [...from.attributes]) {
      // What the reader has opened stays open.
      if (!to.hasAttribute(name) && name !== 'open') from.removeAttribute(name);
    }
    for (const { name, value } of to.attributes) {
      if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    }
    const keys = new Set([...to.childNodes].map(key).filter(Boolean));
    for (const node of [...from.childNodes]) {
      if (key(node) && !keys.has(key(node))) node.remove();
    }
    let at = from.firstChild;
    for (const wanted of [...to.childNodes]) {
      const same = (node) => node.nodeName === wanted.nodeName && key(node) === key(wanted);
      let node = at;
      if (key(wanted)) while (node && !same(node)) node = node.nextSibling;
      if (!node || !same(node)) {
        from.insertBefore(wanted, at);
        continue;
      }
      if (node !== at) from.insertBefore(node, at);
      if (node.nodeType === Node.TEXT_NODE) {
        if (node.data !== wanted.data) node.data = wanted.data;
      } else {
        morph(node, wanted);
      }
      at = node.nextSibling;
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };

  const live = [...document.querySelectorAll('[data-live]')];
  const state = $('#refresh-state');
  const pause = $('#refresh-pause');
  let paused = sessionStorage.getItem('paused') === 'yes';
  let busy = false;
  const say = (text) => {
    if (state.textContent !== text) state.textContent = text;
  };
  const show = () => {
    pause.textContent = paused ? 'Resume refresh' : 'Pause refresh';
    say(paused ? 'not refreshed' : 'refreshes every 5 s');
  };
  const refresh = async () => {
    if (busy || paused || document.hidden || $('dialog[open]')) return;
    busy = true;
    try {
      const answer = await fetch(location.href, { cache: 'no-store' });
      if (!answer.ok) throw new Error(answer.status === 401 ? 'signed out' : `error ${answer.status}`);
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      if (paused) return;
      for (const part of live) {
        const fresh = page.getElementById(part.id);
        if (fresh) morph(part, document.adoptNode(fresh));
      }
      show();
    } catch (error) {
      say(error instanceof TypeError ? 'not refreshed: no answer' : `not refreshed: ${error.message}`);
    } finally {
      busy = false;
    }
  };
  if (live.length > 0 && pause) {
    show();
    pause.addEventListener('click', () => {
      paused = !paused;
      sessionStorage.setItem('paused', paused ? 'yes' : 'no');
      show();
      refresh();
    });
    setInterval(refresh, EVERY);
    document.addEventListener('visibilitychange', refresh);
  }

  // --- Questions: the page that asks, in a dialog.
  const ask = async (url) => {
    try {
      const answer = await fetch(url);
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const question = $('#question', page);
      if (!answer.ok || !question) throw new Error('no question');
      const dialog = document.createElement('dialog');
      dialog.setAttribute('aria-labelledby', 'question-title');
      dialog.append(document.adoptNode(question));
      dialog.addEventListener('close', () => dialog.remove());
      document.body.append(dialog);
      dialog.showModal();
    } catch {
      location.href = url;
    }
  };
  document.addEventListener('click', (event) => {
    const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    const link = event.target.closest('a[data-ask], a[data-cancel], button[data-copy]');
    if (!link || !plain) return;
    if (link.dataset.copy !== undefined) {
      copy(link);
    } else if (link.dataset.ask !== undefined) {
      event.preventDefault();
      ask(link.href);
    } else if (link.closest('dialog')) {
      event.preventDefault();
      link.closest('dialog').close();
    }
  });
  document.addEventListener('submit', (event) => {
    const form = event.target;
    const button = event.submitter;
    if (!button || button.dataset.ask === undefined) return;
    event.preventDefault();
    const url = new URL(button.formAction);
    url.search = new URLSearchParams(new FormData(form, button));
    ask(url.href);
  });

  // --- Copying.
  const copy = async (button) => {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = 'copied';
      $('#said').textContent = 'copied';
    } catch {
      button.textContent = 'not allowed';
    }
    setTimeout(() => {
      button.textContent = before;
      $('#said').textContent = '';
    }, 1500);
  };

  // --- What was done is said once.
  const here = new URL(location.href);
  if (here.searchParams.has('done')) {
    for (const name of ['done', 'count']) here.searchParams.delete(name);
    history.replaceState(null, '', here);
  }
})();
