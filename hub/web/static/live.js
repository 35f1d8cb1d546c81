// Keeps the live part of a job's page fresh while the job goes on. Without it the page reloads itself, and says the same.
"use strict";
(() => {
  const part = document.querySelector("[data-live]");
  if (!part) return;
  const pauseMilliseconds = 2000;
  async function refresh() {
    if (document.hidden) return setTimeout(refresh, pauseMilliseconds);
    try {
      const answer = await fetch(part.dataset.live, { credentials: "same-origin", redirect: "error" });
      if (!answer.ok) return;
      // The server made this HTML and escaped what is in it, as in the page itself.
      const found = new DOMParser().parseFromString(await answer.text(), "text/html");
      part.replaceChildren(...found.body.childNodes);
      if (answer.headers.get("x-job-final") === "1") return location.reload();
    } catch { /* the service may be restarting */ }
    setTimeout(refresh, pauseMilliseconds);
  }
  setTimeout(refresh, pauseMilliseconds);
})();
