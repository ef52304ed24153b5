// Keeps the parts of a page current that are marked `data-live`: fetches the same page again, and replaces what has changed.
"use strict";

(() => {
  const BUSY_MS = 2000;
  const IDLE_MS = 5000;
  const LONGEST_MS = 30000;
  const TIMEOUT_MS = 15000;

  const state = document.getElementById("live");
  if (!state) return;

  // What somebody reads or uses is not taken away from under them.
  function inUse(part) {
    const selection = document.getSelection();
    return part.contains(document.activeElement) ||
      (selection && !selection.isCollapsed && selection.containsNode(part, true));
  }

  function replace(page) {
    for (const part of document.querySelectorAll("[data-live]")) {
      const current = page.getElementById(part.id);
      if (current && current.outerHTML !== part.outerHTML && !inUse(part)) {
        part.replaceWith(document.importNode(current, true));
      }
    }
    document.title = page.title;
  }

  async function update() {
    const answer = await fetch(location.href, {
      credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (answer.redirected) {
      // The session has ended.
      location.reload();
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
  }

  function interval() {
    return document.querySelector("[data-busy]") ? BUSY_MS : IDLE_MS;
  }

  let pause = interval();

  async function turn() {
    if (document.querySelector("[data-ended]")) return;
    if (!document.hidden) {
      try {
        await update();
        pause = interval();
        state.hidden = true;
      } catch {
        pause = Math.min(2 * pause, LONGEST_MS);
        state.textContent = "The mirror does not answer; what is shown is old.";
        state.hidden = false;
      }
    }
    setTimeout(turn, pause);
  }

  setTimeout(turn, pause);
})();
