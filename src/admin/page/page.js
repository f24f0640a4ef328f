// Keeps the page up to date. The proxy says by server-sent events that something has changed, and this script then
// fetches the same page and takes over what differs. While there are no events, the script asks every few seconds.
"use strict";

(() => {
  // How long to wait between two requests while there are no events, in milliseconds.
  const POLL = 3000;
  // How long to wait until events are tried again after the proxy refused them, in milliseconds.
  const RETRY = 30000;

  const live = document.getElementById("live");
  let fetching = false;
  let stale = false;
  let polling = 0;

  const say = (state, text) => {
    // A screen reader reads the text whenever it is set.
    if (live.dataset.state !== state) {
      live.dataset.state = state;
      live.textContent = text;
    }
  };

  const working = () => (polling ? say("polling", "Asks every 3 seconds") : say("live", "Live"));

  const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset.key || null : null);

  // Whether `old` can become `fresh` without being replaced.
  const fits = (old, fresh) => old.nodeName === fresh.nodeName && keyOf(old) === keyOf(fresh);

  // Makes `old` what `fresh` is, and touches only what differs, so that focus, selection and scroll position stay.
  const morph = (old, fresh) => {
    if (old.isEqualNode(fresh)) {
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) {
        old.removeAttribute(name);
      }
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) {
        old.setAttribute(name, value);
      }
    }
    morphChildren(old, fresh);
  };

  const morphChildren = (old, fresh) => {
    const wantedKeys = new Set([...fresh.childNodes].map(keyOf));
    const known = new Map();
    for (const child of [...old.childNodes]) {
      const key = keyOf(child);
      if (key === null) {
        continue;
      }
      if (wantedKeys.has(key)) {
        known.set(key, child);
      } else {
        child.remove();
      }
    }
    let at = old.firstChild;
    for (const wanted of fresh.childNodes) {
      const key = keyOf(wanted);
      const candidate = key === null ? at : known.get(key);
      if (!candidate || !fits(candidate, wanted)) {
        old.insertBefore(document.importNode(wanted, true), at);
        continue;
      }
      if (candidate === at) {
        at = at.nextSibling;
      } else {
        old.insertBefore(candidate, at);
      }
      morph(candidate, wanted);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };

  // Puts the focus back if its element was moved, or if the same link now stands elsewhere.
  const refocus = (focused) => {
    if (focused === document.activeElement || focused === document.body || focused === null) {
      return;
    }
    const href = focused.getAttribute("href");
    const same = focused.isConnected ? focused : href && document.querySelector(`a[href="${CSS.escape(href)}"]`);
    if (same) {
      same.focus({ preventScroll: true });
    }
  };

  const update = async () => {
    if (fetching || document.hidden) {
      stale = true;
      return;
    }
    fetching = true;
    stale = false;
    try {
      const answer = await fetch(location.href.split("#")[0], { cache: "no-store" });
      if (!(answer.headers.get("content-type") || "").startsWith("text/html")) {
        throw new Error(`HTTP status ${answer.status}`);
      }
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = document.activeElement;
      morph(document.querySelector("main"), fresh.querySelector("main"));
      refocus(focused);
      document.title = fresh.title;
      working();
    } catch {
      const time = new Date().toLocaleTimeString();
      say("lost", `No answer since ${time}: what you see is old`);
    }
    fetching = false;
    if (stale) {
      update();
    }
  };

  const poll = () => {
    polling ||= setInterval(update, POLL);
  };

  const listen = () => {
    const events = new EventSource("/events");
    events.addEventListener("open", () => {
      clearInterval(polling);
      polling = 0;
      working();
    });
    events.addEventListener("changed", update);
    events.addEventListener("error", () => {
      poll();
      // The browser itself connects again, unless the proxy refused.
      if (events.readyState === EventSource.CLOSED) {
        setTimeout(listen, RETRY);
      }
    });
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && stale) {
      update();
    }
  });
  listen();
})();
