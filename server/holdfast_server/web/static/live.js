// Keeps the page true: on a change, the sections that show its topic are fetched again and replaced in place.
// A page that was opened stays readable without this file; it is only not live.
"use strict";

(() => {
  // A fleet reports all the time; a section is fetched at most this often, and always once more after the last change.
  const PAUSE_MS = 700;
  // When the server has no event stream to spare, we ask instead.
  const POLL_MS = 3000;
  const RETRY_MS = 15000;

  const live = document.getElementById("live");
  const sections = [...document.querySelectorAll("[data-from]")].map((element) => ({
    element,
    topics: element.dataset.topics.split(" "),
    from: element.dataset.from,
    busy: false,
    again: false,
  }));

  const say = (state, words) => {
    if (live.dataset.state !== state) {
      live.dataset.state = state;
      live.textContent = words;
    }
  };

  // What a person opened or focused stays so: the elements carry ids that survive the exchange.
  const replace = (section, html) => {
    const target = section.element.querySelector(".swapped");
    const open = [...target.querySelectorAll("details[open][id]")].map((element) => element.id);
    const focused = target.contains(document.activeElement) ? document.activeElement : null;
    const address = focused && focused.getAttribute("href");
    const summary = focused && focused.tagName === "SUMMARY" && focused.parentElement.id;
    target.innerHTML = html;
    open.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
    if (summary) document.getElementById(summary)?.querySelector("summary")?.focus();
    else if (address) target.querySelector(`a[href="${CSS.escape(address)}"]`)?.focus();
    age();
  };

  const refresh = async (section) => {
    if (section.busy) {
      section.again = true;
      return;
    }
    section.busy = true;
    try {
      const answer = await fetch(section.from, { credentials: "omit" });
      if (answer.ok) replace(section, await answer.text());
    } catch {
      // The stream tells when the server is back, and everything is fetched then.
    }
    setTimeout(() => {
      section.busy = false;
      if (section.again) {
        section.again = false;
        refresh(section);
      }
    }, PAUSE_MS);
  };

  const refreshTopics = (topics) =>
    sections.filter((section) => section.topics.some((topic) => topics.includes(topic))).forEach(refresh);

  let polling = null;
  const poll = () => {
    polling ??= setInterval(() => sections.forEach(refresh), POLL_MS);
  };

  const listen = () => {
    const events = new EventSource(document.body.dataset.events);
    events.onopen = () => {
      clearInterval(polling);
      polling = null;
      say("live", "live");
      sections.forEach(refresh); // whatever changed while nobody listened
    };
    events.addEventListener("change", (event) => refreshTopics(JSON.parse(event.data).topics));
    events.onerror = () => {
      say("away", events.readyState === EventSource.CLOSED ? "asking" : "reconnecting");
      if (events.readyState === EventSource.CLOSED) {
        poll();
        setTimeout(listen, RETRY_MS);
      }
    };
  };

  const age = () => {
    for (const element of document.querySelectorAll("time[datetime]")) {
      const seconds = Math.max(0, Math.round((Date.now() - Date.parse(element.dateTime)) / 1000));
      const words =
        seconds < 60 ? `${seconds} s ago`
        : seconds < 3600 ? `${Math.floor(seconds / 60)} min ago`
        : seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago`
        : `${Math.floor(seconds / 86400)} d ago`;
      if (element.textContent !== words) element.textContent = words;
      element.title = element.dateTime;
    }
  };

  age();
  setInterval(age, 1000);
  if (sections.length) listen();
  else live.hidden = true;
})();
