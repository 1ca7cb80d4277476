"use strict";
// Shows an item, takes a key, waits until the decision is on the server's disk, and shows the next one, which it has
// fetched meanwhile. Whatever comes from the server is drawn by textContent alone.
(() => {
  const QUIET_MS = 150; // a key that was meant for the item before
  const DRAFT_MS = 2000;
  const HOLD_MS = 30000;
  const LEASE_MS = 600000;
  const LONGEST_WAIT_MS = 8000;
  const KEPT = "posttrain-annotate:"; // names in localStorage

  const TASKS = {
    demonstration: "Write the answer that you would want",
    pick: "Which answer is best?",
    rank: "Rank the answers, the best first",
    accept: "Is this answer good?",
    first_wrong: "Which step is the first wrong one?",
  };
  const KEYS = {
    demonstration: [["Ctrl Enter", "send your answer, and go on"], ["Esc", "leave the text"], ["e", "back into it"]],
    pick: [["1 – 9", "this answer is best; go on"]],
    rank: [["1 – 9", "the next place is this answer's; after the last one, go on"],
      ["=", "the next one shares the place of the one before"], ["Backspace", "take the last one back"]],
    accept: [["a", "accept; go on"], ["x", "reject; go on"]],
    first_wrong: [["1 – 9", "this step is the first wrong one; go on"], ["↓ ↑", "this step is right; the one before"],
      ["x", "the marked step is wrong; go on"], ["a", "all steps are right; go on"]],
  };
  const EVERYWHERE = [["0", "none is good"], ["f", "flag: unclear, broken or unfit"], ["n", "write a note"],
    ["u", "undo your last decision"], ["← →", "look back at earlier decisions"], ["g", "the guideline"],
    ["m", "letters of one width"], ["?", "this list"]];

  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const kept = {
    get(name) { try { return localStorage.getItem(KEPT + name); } catch { return null; } },
    set(name, value) { try { localStorage.setItem(KEPT + name, value); } catch { /* private window: not kept */ } },
    drop(name) { try { localStorage.removeItem(KEPT + name); } catch { /* as above */ } },
    names(start) { try { return Object.keys(localStorage).filter((k) => k.startsWith(KEPT + start)); } catch { return []; } },
  };
  const uuid = () => { // crypto.randomUUID is there on https and localhost only
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    bytes[6] = (bytes[6] & 15) | 64;
    bytes[8] = (bytes[8] & 63) | 128;
    const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  };
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  const session = uuid();
  let about = null;
  let name = kept.get("name") || "";
  let item = null; // on the screen
  let ahead = null; // a promise of the next one
  let aheadItem = null; // the same, when it is there
  const waiting = []; // items of this tab that were put aside: by an undo
  let aside = null; // what was on the screen before the person looked back
  const past = []; // ids of decisions of this tab that stand
  let last = null; // the annotator's newest, as the server says
  let isBusy = false;
  let isMore = false;
  let endState = "";
  let drawnAt = 0;
  let placed = []; // rank: groups of places on the screen
  let isTied = false;
  let here = 0; // first_wrong: the marked step
  let draftSaved = "";
  let readMs = 0;
  let readFrom = null;
  let poll = 0;

  // --- the server ------------------------------------------------------------------------------------------------------

  class Refused extends Error {
    constructor(status, code, message) { super(message); this.status = status; this.code = code; }
  }

  async function ask(path, values, isLast = false) {
    const response = await fetch(`/api/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ annotator: name, session, ...values }),
      keepalive: isLast,
    });
    const answer = await response.json();
    if (!response.ok) throw new Refused(response.status, answer.error.code, answer.error.message);
    return answer;
  }

  let wake = null;
  // Until there is an answer: a decision is made once, whatever the network does. It has an id, so that sending it again
  // writes nothing twice.
  async function askUntil(path, values, what) {
    for (let wait = 500; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      try {
        const answer = await ask(path, values);
        trouble("");
        return answer;
      } catch (error) {
        if (error instanceof Refused && error.status < 500) throw error;
        const why = error instanceof Refused ? error.message : "the server does not answer";
        trouble(`${what}: ${why}. Trying again; leave this page open.`, true);
        await new Promise((done) => { wake = done; setTimeout(done, wait); });
      }
    }
  }

  function trouble(text, canRetry = false) {
    $("trouble").hidden = !text;
    $("trouble-text").textContent = text;
    $("retry").hidden = !canRetry;
  }

  function refusedBy(error) {
    if (!(error instanceof Refused)) throw error;
    trouble(error.message[0].toUpperCase() + error.message.slice(1));
    if (error.code === "guideline_changed") ask("about", {}).then(learn).then(() => open("guide"));
    if (error.code === "unknown_item") show(null);
  }

  function tell(progress) {
    last = progress.last;
    $("count").textContent = `${progress.done} of ${progress.needed}`;
    $("progress").max = Math.max(progress.needed, 1);
    $("progress").value = progress.done;
    $("progress").setAttribute("aria-valuetext", `${progress.done} of ${progress.needed} decisions`);
    document.title = `${progress.done} of ${progress.needed} · ${about.title}`;
    if (progress.trouble) trouble(progress.trouble);
    return progress;
  }

  const held = () => [item, aside && aside.item, aheadItem, ...waiting].filter(Boolean).map((one) => one.id);
  const fetchNext = () => askUntil("next", { held: held(), more: isMore }, "No next question");

  // --- time ------------------------------------------------------------------------------------------------------------

  function startClock() { readMs = 0; readFrom = document.hidden ? null : performance.now(); }
  function stopClock() {
    if (readFrom !== null) readMs += performance.now() - readFrom;
    readFrom = null;
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { stopClock(); saveDraft(); } else if (readFrom === null) readFrom = performance.now();
  });
  function seconds() {
    const running = readFrom === null ? 0 : performance.now() - readFrom;
    return Math.round(readMs + running) / 1000;
  }

  // --- going on --------------------------------------------------------------------------------------------------------

  async function advance() {
    clearTimeout(poll);
    if (waiting.length) {
      show({ state: "item", item: waiting.shift() });
      return;
    }
    item = null;
    let answer = ahead && await ahead;
    ahead = aheadItem = null;
    // what was said of the end before the last decision may not hold after it
    if (!answer || answer.state !== "item") {
      answer = await fetchNext();
      tell(answer.progress);
    }
    show(answer);
  }

  function fetchAhead() {
    // quietly: if it fails, it is fetched when it is needed
    ahead = ask("next", { held: held(), more: isMore }).catch(() => null);
    ahead.then((answer) => { aheadItem = (answer && answer.item) || null; });
  }

  async function decide(answer) {
    if (isBusy || !item) return;
    isBusy = true;
    stopClock();
    const looked = aside ? item.given.id : undefined;
    const decision = {
      id: uuid(), item: item.id, mode: item.mode, shown: item.shown, seconds: aside ? undefined : seconds(),
      note: $("note").value.trim() || undefined, guideline_sha: about.guideline_sha, voids: looked, ...answer,
    };
    kept.set(`pending:${decision.id}`, JSON.stringify({ annotator: name, session, ...decision }));
    document.body.classList.add("busy");
    try {
      const written = await askUntil("decide", decision, "Not saved yet");
      kept.drop(`pending:${decision.id}`);
      if (looked && past.includes(looked)) past.splice(past.indexOf(looked), 1);
      past.push(written.id);
      tell(written.progress);
      said("Saved");
      if (aside) goOn(); else await advance();
    } catch (error) {
      kept.drop(`pending:${decision.id}`);
      unmark();
      refusedBy(error);
    } finally {
      isBusy = false;
      document.body.classList.remove("busy");
      if (readFrom === null && !document.hidden) readFrom = performance.now();
    }
  }

  async function undo() {
    const voids = past.at(-1) || last;
    if (isBusy) return;
    if (!voids) { said("Nothing to undo"); return; }
    isBusy = true;
    try {
      if (aside) goOn();
      await saveDraft();
      const answer = await askUntil("undo", { id: uuid(), voids }, "Not undone yet");
      if (past.at(-1) === voids) past.pop();
      if (item && item.id !== answer.item.id) waiting.unshift(item);
      tell(answer.progress);
      show(answer);
      said("Undone: decide again");
    } catch (error) {
      past.pop();
      refusedBy(error);
    } finally {
      isBusy = false;
    }
  }

  async function look(step) {
    if (isBusy) return;
    isBusy = true;
    try {
      const before = aside ? item.given.id : "";
      if (!aside && step > 0) return;
      await saveDraft();
      const answer = await askUntil("look", { before, step }, "Cannot look back");
      if (answer.item) {
        if (!aside) aside = { item, text: textNow() };
        show({ state: "item", item: answer.item });
      } else if (step > 0) {
        goOn();
      } else {
        said("Nothing before this");
      }
    } catch (error) {
      refusedBy(error);
    } finally {
      isBusy = false;
    }
  }

  function goOn() {
    if (!aside) return;
    const { item: before, text } = aside;
    aside = null;
    if (!before) { advance(); return; }
    if (text !== null) before.text = text;
    show({ state: "item", item: before });
  }

  let saidTimer = 0;
  function said(text) {
    $("saved").textContent = text;
    clearTimeout(saidTimer);
    saidTimer = setTimeout(() => { $("saved").textContent = ""; }, 2500);
  }

  // --- drafts ----------------------------------------------------------------------------------------------------------

  function textNow() {
    const area = $("answer");
    return area ? area.value : null;
  }

  async function saveDraft(isLast = false) {
    const text = textNow();
    if (text === null || aside || text === draftSaved || !item) return;
    const before = draftSaved;
    draftSaved = text;
    try {
      await ask("draft", { item: item.id, text }, isLast);
      if ($("draft-state")) $("draft-state").textContent = "Draft kept";
    } catch {
      draftSaved = before; // two seconds later it is tried again
      if ($("draft-state")) $("draft-state").textContent = "Draft not kept yet: the server does not answer";
    }
  }
  setInterval(saveDraft, DRAFT_MS);
  let lastActive = performance.now();
  for (const kind of ["keydown", "pointerdown", "scroll"]) addEventListener(kind, () => { lastActive = performance.now(); }, { passive: true });
  setInterval(() => {
    // who has left the desk does not keep the question from others
    if (name && held().length && performance.now() - lastActive < LEASE_MS) ask("hold", { held: held() }).catch(() => { /* the next one renews it, too */ });
  }, HOLD_MS);
  addEventListener("pagehide", () => {
    saveDraft(true);
    const ids = held();
    if (name && ids.length) ask("leave", { held: ids }, true).catch(() => { /* the lease runs out */ });
  });
  addEventListener("beforeunload", (event) => {
    if (kept.names("pending:").length && isBusy) event.preventDefault();
  });

  // --- drawing ---------------------------------------------------------------------------------------------------------

  function drawText(parent, part, name) {
    const text = make("div", "text");
    text.dir = "auto";
    parent.append(text);
    if (part.text) text.textContent = part.text;
    else text.append(make("span", "empty", "(empty)"));
    if (part.rest !== null && part.rest !== undefined) {
      const more = make("button", "show-more", `Show more of ${part.chars.toLocaleString("en")} characters`);
      more.type = "button";
      const id = item.id;
      let start = part.rest;
      more.addEventListener("click", async () => {
        more.disabled = true;
        try {
          const next = await ask("rest", { item: id, part: name, start });
          text.append(next.text);
          start = next.rest;
          if (start === null) more.remove();
        } catch (error) { trouble(error.message); }
        more.disabled = false;
      });
      parent.append(more);
    }
    return text;
  }

  function drawPrompt() {
    $("prompt").replaceChildren(...item.prompt.map((turn, i) => {
      const made = make("div", ["user", "system"].includes(turn.role) ? `turn ${turn.role}` : "turn");
      if (turn.role && item.prompt.length > 1) made.append(make("span", "role", turn.role));
      drawText(made, turn, `prompt:${i}`);
      return made;
    }));
  }

  function drawCards() {
    $("answers").className = "answers columns";
    $("answers").replaceChildren(...item.completions.map((part, i) => {
      const card = make("article", "card");
      const head = make("button", "card-head");
      head.type = "button";
      head.append(make("kbd", "", String(i + 1)), make("span", "verb", item.mode === "pick" ? "This one is best" : "Next place"),
        make("span", "place"));
      head.addEventListener("click", () => choose(i));
      card.append(head);
      drawText(card, part, `completion:${item.shown[i]}`);
      return card;
    }));
    choices(item.completions.map((_, i) => button([make("span", "number", String(i + 1))], () => choose(i), `Answer ${i + 1}`)));
    if (item.mode === "rank") {
      $("choices").append(button(["Same place ", make("kbd", "", "=")], tie));
      $("choices").lastChild.id = "tie";
    }
  }

  function drawAccept() {
    $("answers").className = "answers";
    const card = make("article", "card alone");
    drawText(card, item.completions[0], "completion:0");
    $("answers").replaceChildren(card);
    const accept = button(["Accept ", make("kbd", "", "a")], () => judge(true));
    const reject = button(["Reject ", make("kbd", "", "x")], () => judge(false));
    accept.classList.add("accept");
    reject.classList.add("reject");
    choices([accept, reject]);
  }

  function drawSteps() {
    $("answers").className = "answers";
    const list = make("ol", "steps");
    const add = (steps, from) => steps.forEach((part, k) => {
      const i = from + k;
      const row = make("li", "step");
      row.append(make("span", "step-number", String(i + 1)));
      const cell = make("div");
      drawText(cell, part, `step:${i}`);
      const wrong = button(["First wrong"], () => wrongAt(i), `Step ${i + 1} is the first wrong one`);
      row.append(cell, wrong);
      list.append(row);
    });
    add(item.steps, 0);
    const parts = [list];
    if (item.step_count > item.steps.length) {
      const id = item.id;
      const more = button([`Show more of ${item.step_count} steps`], async () => {
        const next = await ask("rest", { item: id, part: "steps", start: list.children.length });
        add(next.steps, list.children.length);
        if (list.children.length === item.step_count) more.remove();
      });
      more.className = "show-more";
      parts.push(more);
    }
    $("answers").replaceChildren(...parts);
    const all = button(["All are right ", make("kbd", "", "a")], () => allRight());
    const right = button(["Right, next ", make("kbd", "", "↓")], () => stepTo(here + 1));
    const wrong = button(["Wrong ", make("kbd", "", "x")], () => wrongAt(here));
    all.classList.add("accept");
    wrong.classList.add("reject");
    choices([right, wrong, all]);
    here = 0;
    markSteps();
  }

  function drawWriting() {
    $("answers").className = "answers";
    const label = make("label", "", item.is_begun ? "Make this answer good" : "Your answer");
    label.htmlFor = "answer";
    const area = make("textarea", "answer-text");
    area.id = "answer";
    area.dir = "auto";
    area.value = item.text;
    draftSaved = item.text;
    const state = make("p", "draft-state");
    state.id = "draft-state";
    const grow = () => { area.style.height = "auto"; area.style.height = `${Math.min(area.scrollHeight + 4, 0.6 * innerHeight)}px`; };
    area.addEventListener("input", () => { grow(); state.textContent = ""; });
    $("answers").replaceChildren(label, area, state);
    const send = button(["Send ", make("kbd", "", "Ctrl Enter")], sendText);
    send.classList.add("main-button");
    choices([send]);
    grow();
    // on a phone the keyboard would cover the prompt before it is read
    if (!matchMedia("(pointer: coarse)").matches) { area.focus({ preventScroll: true }); area.setSelectionRange(area.value.length, area.value.length); }
  }

  function button(content, action, label) {
    const made = make("button");
    made.type = "button";
    made.append(...content);
    if (label) made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    return made;
  }

  function choices(buttons) { $("choices").replaceChildren(...buttons); }

  const DRAWN = { pick: drawCards, rank: drawCards, accept: drawAccept, first_wrong: drawSteps, demonstration: drawWriting };

  function only(id) {
    for (const one of ["start", "question", "end"]) $(one).hidden = one !== id;
    $("actions").hidden = id !== "question";
  }

  function show(answer) {
    clearTimeout(poll);
    if (!answer) { item = null; advance(); return; }
    if (answer.state !== "item") { showEnd(answer); return; }
    item = answer.item;
    endState = "";
    placed = [];
    isTied = false;
    only("question");
    $("note").value = (item.given && item.given.note) || "";
    $("note-box").hidden = !$("note").value;
    drawPrompt();
    DRAWN[item.mode]();
    if (item.mode === "demonstration") $("none").firstChild.textContent = "No good answer ";
    $("looking").hidden = !aside;
    if (aside) showGiven();
    scrollTo(0, 0);
    if (item.mode !== "demonstration") $("main").focus({ preventScroll: true });
    const count = item.completions ? `, ${plural(item.completions.length, "answer")}` : "";
    $("live").textContent = `${aside ? "Earlier question" : "New question"}${count}. ${item.prompt.at(-1).text.slice(0, 200)}`;
    drawnAt = performance.now();
    startClock();
    if (!ahead && !aside && !waiting.length) fetchAhead();
  }

  function showGiven() {
    const { given } = item;
    const at = new Date(1000 * given.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const what = given.flag ? "You flagged this" : given.none_good ? "You found none good" : "You decided this";
    $("looking-text").textContent = `${what} at ${at}. A new answer replaces the old one.`;
    const on = (place) => item.shown.indexOf(place);
    if (given.choice !== undefined) mark(on(given.choice));
    if (given.order) { placed = given.order.map((group) => group.map(on)); markPlaces(); placed = []; }
    if (given.verdict !== undefined) markVerdict(given.verdict);
    if (given.first_wrong !== undefined) { here = given.first_wrong; markSteps(true); }
  }

  function showEnd(answer) {
    const isNew = endState !== answer.state;
    endState = answer.state;
    item = null;
    only("end");
    const progress = tell(answer.progress);
    const isDone = ["finished", "enough", "leased"].includes(answer.state);
    const own = `You made ${plural(progress.own, "decision")}.`;
    const texts = {
      finished: [progress.done >= progress.needed ? "All is decided" : "Nothing is left for you",
        `Thank you, ${name}. ${own}${progress.done >= progress.needed ? "" : " The others need other eyes."}`],
      enough: ["Enough is decided", `Thank you, ${name}. ${own} There are more questions, if you like.`],
      waiting: ["The model is writing", "The next question comes by itself, as soon as its answers are there."],
      leased: ["Others read the last ones", `Thank you, ${name}. ${own} What they leave comes here by itself.`],
      elsewhere: ["The last ones are open in another tab of yours", "Decide them there; if you closed it, they come here in a minute and a half."],
    };
    $("end-mark").textContent = isDone ? "✓" : "…";
    [$("end-title").textContent, $("end-text").textContent] = texts[answer.state];
    $("end-command").hidden = !(isDone && about.next_command && progress.done >= progress.needed);
    $("end-command").textContent = about.next_command;
    $("more").hidden = answer.state !== "enough" && answer.state !== "leased";
    $("more").textContent = answer.state === "leased" ? "Decide them, too" : "Go on with the others";
    $("look-back").hidden = !last;
    if (isNew) {
      $("live").textContent = $("end-title").textContent;
      $("main").focus({ preventScroll: true });
    }
    // somebody may flag, undo, or close a tab: then there is one more
    if (answer.state !== "enough") poll = setTimeout(advance, answer.state === "waiting" ? 1000 : 10000);
  }

  // --- deciding --------------------------------------------------------------------------------------------------------

  function unmark() {
    for (const one of document.querySelectorAll(".chosen, .good-card, .bad-card, .pressed")) {
      one.classList.remove("chosen", "good-card", "bad-card", "pressed");
    }
    placed = [];
    if (item && item.mode === "rank") markPlaces();
    if (item && item.mode === "first_wrong") markSteps();
  }

  function mark(i) {
    const card = $("answers").children[i];
    if (card) card.classList.add("chosen");
    if ($("choices").children[i]) $("choices").children[i].classList.add("pressed");
  }

  function choose(i) {
    if (isBusy || !item || i >= item.shown.length) return;
    if (item.mode === "pick") {
      unmark();
      mark(i);
      decide({ choice: item.shown[i] });
      return;
    }
    if (placed.flat().includes(i)) { said(`${i + 1} has a place already`); return; }
    if (isTied && placed.length) placed.at(-1).push(i); else placed.push([i]);
    isTied = false;
    markPlaces();
    if (placed.flat().length === item.shown.length) {
      decide({ order: placed.map((group) => group.map((one) => item.shown[one])) });
    }
  }

  function tie() {
    if (!placed.length) { said("Place one first"); return; }
    isTied = !isTied;
    markPlaces();
  }

  function unplace() {
    if (!placed.length) return;
    placed.at(-1).pop();
    if (!placed.at(-1).length) placed.pop();
    isTied = false;
    markPlaces();
  }

  function markPlaces() {
    let place = 1;
    const places = new Map();
    for (const group of placed) {
      for (const one of group) places.set(one, group.length > 1 ? `${place} =` : `${place}`);
      place += group.length;
    }
    [...$("answers").children].forEach((card, i) => {
      const at = places.get(i);
      card.classList.toggle("chosen", at !== undefined);
      card.querySelector(".place").textContent = at === undefined ? "" : `Place ${at}`;
      card.querySelector(".verb").hidden = at !== undefined;
      $("choices").children[i].classList.toggle("pressed", at !== undefined);
    });
    $("tie").classList.toggle("pressed", isTied);
    $("tie").setAttribute("aria-pressed", String(isTied));
  }

  function markVerdict(verdict) {
    $("answers").firstChild.classList.add(verdict ? "good-card" : "bad-card");
  }

  function judge(verdict) {
    if (isBusy) return;
    unmark();
    markVerdict(verdict);
    decide({ verdict });
  }

  function stepTo(i) {
    if (isBusy) return;
    here = Math.max(0, Math.min(i, item.step_count));
    markSteps();
    const row = document.querySelector(".step.here");
    if (row) row.scrollIntoView({ block: "nearest" });
    if (here === item.step_count) said("All right? a sends it");
  }

  function markSteps(isGiven = false) {
    [...document.querySelectorAll(".step")].forEach((row, i) => {
      row.classList.toggle("right", i < here);
      row.classList.toggle("here", i === here && !isGiven);
      row.classList.toggle("wrong", i === here && isGiven);
      row.classList.toggle("given", isGiven);
      row.classList.toggle("after", i > here);
    });
  }

  function wrongAt(i) {
    if (isBusy || i >= item.step_count) return;
    here = i;
    markSteps(true);
    decide({ first_wrong: i });
  }

  function allRight() {
    if (isBusy) return;
    here = item.step_count;
    markSteps(true);
    decide({ first_wrong: item.step_count });
  }

  function sendText() {
    const text = textNow();
    if (!text || !text.trim()) { said("Nothing is written yet"); $("answer").focus(); return; }
    decide({ text });
  }

  function noneGood() {
    const answers = { accept: { verdict: false, none_good: true }, first_wrong: { first_wrong: 0, none_good: true } };
    if (item.mode === "accept") markVerdict(false);
    $("none").classList.add("pressed");
    decide(answers[item.mode] || { none_good: true }).finally(() => $("none").classList.remove("pressed"));
  }

  function sendFlag() {
    const why = $("flag-note").value.trim();
    $("flag").close();
    if (why) $("note").value = [$("note").value.trim(), why].filter(Boolean).join("\n");
    decide({ flag: true });
  }

  // --- keys ------------------------------------------------------------------------------------------------------------

  const isTyping = (target) => target.matches && target.matches("input, textarea");

  function digitOf(event) {
    const found = /^(?:Digit|Numpad)(\d)$/.exec(event.code); // the key, whatever letter a keyboard has there
    return found ? Number(found[1]) : /^\d$/.test(event.key) ? Number(event.key) : null;
  }

  function onDigit(digit) {
    if (digit === 0) noneGood();
    else if (item.mode === "pick" || item.mode === "rank") choose(digit - 1);
    else if (item.mode === "first_wrong") wrongAt(digit - 1);
    else return false;
    return true;
  }

  const ON_KEY = {
    pick: {},
    rank: { "=": tie, Backspace: unplace },
    accept: { a: () => judge(true), x: () => judge(false) },
    first_wrong: { a: allRight, x: () => wrongAt(here), ArrowDown: () => stepTo(here + 1), ArrowUp: () => stepTo(here - 1) },
    demonstration: { e: () => $("answer").focus() },
  };
  const ALWAYS = {
    f: () => open("flag"), n: openNote, u: undo, g: () => about.guideline && open("guide"), "?": () => open("keys"),
    ArrowLeft: () => look(-1), ArrowRight: () => look(1), m: widths, Escape: goOn,
  };

  document.addEventListener("keydown", (event) => {
    const isComposing = event.isComposing || event.keyCode === 229;
    if (isComposing || event.repeat || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (isTyping(event.target)) {
      if (event.key === "Escape" && item) { event.preventDefault(); event.target.blur(); $("main").focus({ preventScroll: true }); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && item) {
        event.preventDefault();
        if (event.target.id === "answer") sendText(); else $("main").focus({ preventScroll: true });
      }
      return;
    }
    if (event.ctrlKey || event.metaKey || !about || !name || !$("start").hidden) return;
    if (isBusy || performance.now() - drawnAt < QUIET_MS) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const digit = event.shiftKey && !/^\d$/.test(event.key) && event.key.length === 1 ? null : digitOf(event);
    const actions = item ? { ...ALWAYS, ...ON_KEY[item.mode] }
      : { ArrowLeft: ALWAYS.ArrowLeft, u: undo, g: ALWAYS.g, "?": ALWAYS["?"], m: widths };
    if (actions[key]) { event.preventDefault(); actions[key](); } else if (digit !== null && item && onDigit(digit)) event.preventDefault();
  });

  function widths() {
    const isMono = document.body.classList.toggle("mono");
    kept.set("mono", isMono ? "1" : "");
  }

  function openNote() {
    $("note-box").hidden = false;
    $("note").focus();
  }

  function open(id) {
    if (id === "flag") $("flag-note").value = "";
    if (!$(id).open) $(id).showModal();
  }

  // --- the beginning ---------------------------------------------------------------------------------------------------

  function learn(answer) {
    about = answer;
    document.body.classList.toggle("mono", kept.get("mono") === "1");
    $("task").textContent = TASKS[about.mode];
    $("main").classList.toggle("narrow", !["pick", "rank"].includes(about.mode));
    $("open-guide").hidden = !about.guideline;
    for (const id of ["guideline", "start-guideline"]) $(id).textContent = about.guideline;
    $("start-guide").hidden = !about.guideline;
    $("key-list").replaceChildren(...[...KEYS[about.mode], ...EVERYWHERE].flatMap(([keys, what]) => {
      const term = make("dt");
      term.append(...keys.split(" ").map((one) => (one === "–" ? " – " : make("kbd", "", one))));
      return [term, make("dd", "", what)];
    }));
    tell(answer.progress);
  }

  async function begin() {
    kept.set("name", name);
    kept.set("read", about.guideline_sha);
    for (const key of kept.names("pending:")) {
      const id = key.slice(KEPT.length);
      try {
        await askUntil("decide", JSON.parse(kept.get(id)), "Not saved yet");
      } catch (error) { if (!(error instanceof Refused)) throw error; }
      kept.drop(id);
    }
    await advance();
  }

  async function start() {
    const token = new URLSearchParams(location.hash.slice(1)).get("token");
    try {
      if (token) {
        history.replaceState(null, "", location.pathname); // out of sight, and out of what is copied from the bar
        await askUntil("enter", { token }, "Cannot come in");
      }
      const asked = name;
      name = name || "nobody";
      const answer = await askUntil("about", {}, "Cannot begin");
      name = asked;
      learn(answer);
    } catch (error) { refusedBy(error); return; }
    const isKnown = name && kept.get("read") === about.guideline_sha;
    if (isKnown) { await begin(); return; }
    only("start");
    const { done, needed } = about.progress;
    $("start-title").textContent = done ? `${done} of ${needed} decisions are made` : `${plural(needed, "decision")} to make`;
    $("start-text").textContent = "Each one is kept the moment you make it: stop and come back whenever you like.";
    $("name").value = name || about.annotator;
    if (!matchMedia("(pointer: coarse)").matches) $("name").focus();
  }

  $("start").addEventListener("submit", (event) => {
    event.preventDefault();
    name = $("name").value.trim().split(/\s+/).join(" ");
    if (name) begin().catch(refusedBy);
  });
  const click = (id, action) => $(id).addEventListener("click", action);
  click("retry", () => wake && wake());
  click("open-guide", () => open("guide"));
  click("open-keys", () => open("keys"));
  click("none", () => !isBusy && noneGood());
  click("flag-open", () => open("flag"));
  click("flag-send", sendFlag);
  click("note-open", openNote);
  click("undo", undo);
  for (const id of ["back", "earlier", "look-back"]) click(id, () => look(-1));
  click("later", () => look(1));
  click("go-on", goOn);
  click("more", () => { isMore = true; advance(); });
  for (const one of document.querySelectorAll(".close")) one.addEventListener("click", () => one.closest("dialog").close());
  $("flag-note").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing && !event.repeat) { event.preventDefault(); sendFlag(); }
  });
  start();
})();
