"use strict";
// Draws the curves of a report, and filters what stands in it. Every text reaches the page by textContent alone.
(() => {
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const $ = (selector, within = document) => within.querySelector(selector);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children); // a string becomes a text node
    return element;
  };
  const data = JSON.parse($("#curves-data").textContent);
  const drawn = [];
  // a flat line stands in the middle: uPlot would show zeros on a scale up to 100
  const around = (low, high) => (low === high ? [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)] : uPlot.rangeNum(low, high, 0.1, true));
  const tick = (value) => { // uPlot's own has three decimals, which makes every learning rate 0
    const size = Math.abs(value);
    if (value === null || value === undefined) return "";
    return size && (size < 0.001 || size >= 100_000) ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : size >= 1000 ? value.toLocaleString("en") : number(value);
  };
  const number = (value) => (value === null || value === undefined ? "—" : Number(value.toPrecision(4)).toString());

  // --- controls ------------------------------------------------------------------------------------------------------

  const select = (name, options, change) => {
    const box = make("select", {}, ...options.map(([value, label]) => make("option", { value }, label)));
    box.addEventListener("change", () => change(box.value));
    return [make("label", {}, name, box), box];
  };
  const check = (name, change) => {
    const box = make("input", { type: "checkbox" });
    box.addEventListener("change", () => change(box.checked));
    return make("label", {}, box, name);
  };
  const controls = (of) => $(`.controls[data-for=${of}]`);
  const show = (element, isShown) => element.toggleAttribute("hidden", !isShown);

  // --- curves --------------------------------------------------------------------------------------------------------

  const FIRST = 6;
  const LONG_RUN = 40;
  const STEPS = [0, 1, 2, 3, 4, 5, 6, 7, 8].flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power)); // a step has no half
  const style = { smooth: 0, log: false, all: false };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A mean over as many points on each side as there are on the shorter one: the ends stay where they are.
  const smoothed = (values, share) => {
    const half = Math.round((values.length * share) / 2);
    if (half < 1) return values;
    const sums = [0];
    for (const value of values) sums.push(sums[sums.length - 1] + value);
    return values.map((_, i) => {
      const room = Math.min(half, i, values.length - 1 - i);
      return (sums[i + room + 1] - sums[i - room]) / (2 * room + 1);
    });
  };

  const joined = (figure, runs) => {
    const tables = [];
    const series = [{}];
    runs.forEach((run, place) => {
      const points = figure.runs[run];
      if (!points) return;
      const stroke = colour(place ? "--b" : "--a");
      const dash = place ? [6, 3] : undefined;
      const ys = style.log ? points.y.map((y) => (y > 0 ? y : null)) : points.y;
      tables.push([points.x, ys]);
      const isAlone = points.x.length <= LONG_RUN;
      series.push({ label: run, stroke: style.smooth ? `${stroke}55` : stroke, dash, width: style.smooth ? 1 : 1.5,
        spanGaps: true, points: { show: isAlone, size: 4 } });
      if (style.smooth) {
        const smooth = smoothed(points.y, style.smooth);
        tables.push([points.x, style.log ? smooth.map((y) => (y > 0 ? y : null)) : smooth]);
        series.push({ label: `${run}, smoothed`, stroke, dash, width: 2, spanGaps: true, points: { show: false } });
      }
    });
    return [tables.length > 1 ? uPlot.join(tables) : tables[0], series];
  };

  const axis = (more) => ({ stroke: colour("--dim"), grid: { stroke: colour("--grid"), width: 1 },
    ticks: { stroke: colour("--grid"), width: 1, size: 4 }, font: "11px system-ui, sans-serif", ...more });

  const describe = (figure, runs) => runs.filter((run) => figure.runs[run]).map((run) => {
    const { x, y } = figure.runs[run];
    const low = Math.min(...y);
    const high = Math.max(...y);
    const name = runs.length > 1 ? `${run}: ` : "";
    return `${name}first ${number(y[0])}, last ${number(y[y.length - 1])}, lowest ${number(low)} at step ` +
      `${x[y.indexOf(low)]}, highest ${number(high)} at step ${x[y.indexOf(high)]}`;
  }).join("; ");

  const pointsTable = (figure, runs) => {
    const table = make("table", {}, make("tr", {}, ...["step", ...runs.filter((run) => figure.runs[run])]
      .map((head, i) => make("th", { scope: "col" }, i === 0 || runs.length > 1 ? head : "value"))));
    const values = new Map();
    runs.filter((run) => figure.runs[run]).forEach((run, place, kept) => {
      const { x, y } = figure.runs[run];
      const every = Math.max(1, Math.ceil(x.length / 40));
      x.forEach((step, i) => {
        if (i % every && i !== x.length - 1) return;
        if (!values.has(step)) values.set(step, kept.map(() => null));
        values.get(step)[place] = y[i];
      });
    });
    for (const [step, ys] of [...values].sort((a, b) => a[0] - b[0]))
      table.append(make("tr", {}, make("td", {}, String(step)), ...ys.map((y) => make("td", {}, number(y)))));
    return table;
  };

  const draw = (stage, figure, runs) => {
    const now = make("span", { class: "now" });
    const canvas = make("div", { class: "canvas" });
    const label = `${figure.name} of ${stage} by step: ${describe(figure, runs)}`;
    const hidden = style.log ? runs.reduce((n, run) => n + (figure.runs[run]?.y.filter((y) => y <= 0).length ?? 0), 0) : 0;
    const lost = runs.reduce((n, run) => n + (figure.runs[run]?.lost ?? 0), 0);
    const box = make("div", { class: "chart" }, make("h4", {}, make("span", {}, figure.name), now), canvas);
    const tell = (told) => box.append(make("p", { class: "small warn" }, told));
    if (hidden) tell(`${hidden} points are 0 or less, and have no place on a log axis`);
    if (lost) tell(`${lost} ${lost === 1 ? "value was" : "values were"} no finite number`);
    const table = make("div", { class: "points", tabindex: "0", role: "region", "aria-label": `points of ${figure.name}` });
    const points = make("details", {}, make("summary", {}, "points"), table);
    points.addEventListener("toggle", () => { if (!table.firstChild) table.append(pointsTable(figure, runs)); });
    box.append(points);
    const [values, series] = joined(figure, runs);
    const last = () => runs.filter((run) => figure.runs[run]).map((run) => number(figure.runs[run].y.at(-1))).join(" · ");
    const hasGroups = $$(".groups").some((groups) => groups.dataset.stage === stage);
    let plot = null;
    const build = () => {
      plot = new uPlot({
        width: Math.max(120, canvas.clientWidth), height: 170, series, legend: { show: false },
        scales: { x: { time: false }, y: style.log ? { distr: 3 } : { range: (_, low, high) => around(low, high) } },
        axes: [axis({ size: 26, space: 48, incrs: STEPS }), axis({ size: 54, space: 32, values: (_, splits) => splits.map(tick) })],
        cursor: { points: { size: 6 }, drag: { x: true, y: false } },
        hooks: { setCursor: [(u) => {
          const i = u.cursor.idx;
          now.textContent = i === null || i === undefined ? last()
            : `step ${u.data[0][i]}: ${u.data.slice(1).filter((_, k) => !style.smooth || k % 2 === 0).map((ys) => number(ys[i])).join(" · ")}`;
        }] },
      }, values, canvas);
      const picture = $("canvas", canvas);
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", label);
      if (!hasGroups) return;
      canvas.classList.add("linked");
      let began = null;
      plot.over.addEventListener("mousedown", (event) => { began = event.clientX; });
      plot.over.addEventListener("mouseup", (event) => { // a drag zooms, a click goes to the completions
        if (began !== null && Math.abs(event.clientX - began) < 4 && plot.cursor.idx !== null)
          goTo(stage, plot.data[0][plot.cursor.idx]);
      });
    };
    return { box, build, set: () => { now.textContent = last(); }, resize: () => plot?.setSize({ width: Math.max(120, canvas.clientWidth), height: 170 }) };
  };

  const drawStage = (name) => {
    drawn.length = 0;
    for (const block of $$(".stage-curves")) {
      const isShown = block.dataset.stage === name;
      show(block, isShown);
      const place = $(".charts", block);
      place.replaceChildren();
      if (!isShown) continue;
      const stage = data.stages.find((one) => one.stage === name);
      const figures = style.all ? stage.figures : stage.figures.slice(0, FIRST);
      const charts = figures.map((figure) => draw(name, figure, data.runs));
      place.append(...charts.map((chart) => chart.box));
      for (const chart of charts) { chart.build(); chart.set(); }
      drawn.push(...charts);
    }
  };

  const startCurves = () => {
    const bar = controls("curves");
    if (!bar || !data.stages.length) return;
    // the stage with most to see comes first: of those that sample the last one, else the last
    const sampling = $$(".groups").map((groups) => groups.dataset.stage);
    const first = [...data.stages].reverse().find((one) => sampling.includes(one.stage)) ?? data.stages[data.stages.length - 1];
    let stage = first.stage;
    const again = () => drawStage(stage);
    const [label, box] = select("stage", data.stages.map((one) => [one.stage, one.stage]), (value) => { stage = value; again(); });
    box.value = stage;
    const [smoothing] = select("smoothing", [["0", "none"], ["0.02", "2 %"], ["0.1", "10 %"]], (value) => { style.smooth = Number(value); again(); });
    bar.append(label, smoothing, check("log axis", (value) => { style.log = value; again(); }),
      check("all figures", (value) => { style.all = value; again(); }));
    if (data.runs.length > 1) data.runs.forEach((run, i) => bar.append(make("span", { class: `key run-${i}` }, make("i"), run)));
    bar.append(make("span", { class: "dim small" }, "drag to zoom, double click for all" + (sampling.length ? ", click for the completions of a step" : "")));
    for (const table of $$(".figures")) table.open = false;
    again();
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; for (const chart of drawn) chart.resize(); } });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    matchMedia("print").addEventListener("change", again);
    addEventListener("beforeprint", again);
    addEventListener("afterprint", again);
  };

  // --- completions ---------------------------------------------------------------------------------------------------

  let showStep = () => {};
  const goTo = (stage, step) => {
    showStep(stage, step);
    const heading = $("#h-completions");
    heading.setAttribute("tabindex", "-1");
    heading.focus({ preventScroll: true });
    $("#completions").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  };

  const startGroups = () => {
    const bar = controls("groups");
    if (!bar) return;
    const blocks = $$(".groups");
    let stage = blocks[blocks.length - 1].dataset.stage;
    const groupsOf = (name) => $$(".group", blocks.find((block) => block.dataset.stage === name));
    const stepsOf = (name) => [...new Set(groupsOf(name).filter((group) => group.dataset.kinds.includes("step")).map((group) => Number(group.dataset.step)))];
    const [stageLabel, stageBox] = select("stage", blocks.map((block) => [block.dataset.stage, block.dataset.stage]), (value) => { stage = value; fill(); apply(); });
    const [kindLabel, kindBox] = select("show", [["step", "one step"], ["best", "the best"], ["worst", "the worst"], ["changed", "prompts that changed most"], ["all", "all that stand here"]], () => apply());
    const [stepLabel, stepBox] = select("step", [], () => apply());
    const move = (by) => {
      stepBox.selectedIndex = Math.min(stepBox.length - 1, Math.max(0, stepBox.selectedIndex + by));
      apply();
    };
    const back = make("button", { type: "button", "aria-label": "an earlier step" }, "‹");
    const on = make("button", { type: "button", "aria-label": "a later step" }, "›");
    back.addEventListener("click", () => move(-1));
    on.addEventListener("click", () => move(1));
    const told = make("span", { class: "dim small", role: "status" });
    const fill = () => {
      stepBox.replaceChildren(...stepsOf(stage).map((step) => make("option", { value: step }, String(step))));
      stepBox.selectedIndex = stepBox.length - 1;
    };
    const apply = (note = "") => {
      const kind = kindBox.value;
      for (const part of [stepLabel, back, on]) show(part, kind === "step");
      for (const block of blocks) show(block, block.dataset.stage === stage);
      const groups = groupsOf(stage);
      for (const group of groups) {
        const isShown = kind === "all" || (kind === "step" ? group.dataset.step === stepBox.value && group.dataset.kinds.includes("step") : group.dataset.kinds.includes(kind));
        show(group, isShown);
        if (kind === "step") group.open = isShown;
      }
      if (kind === "changed") { // the same prompt, early and late, one below the other
        const order = new Map();
        groups.forEach((group) => { if (!order.has(group.dataset.prompt)) order.set(group.dataset.prompt, order.size); });
        const sorted = [...groups].sort((a, b) => order.get(a.dataset.prompt) - order.get(b.dataset.prompt) || a.dataset.step - b.dataset.step);
        groups[0]?.parentElement.append(...sorted);
      } else {
        const sorted = [...groups].sort((a, b) => a.dataset.step - b.dataset.step);
        groups[0]?.parentElement.append(...sorted);
      }
      told.textContent = note;
    };
    showStep = (name, step) => {
      stage = stageBox.value = name;
      kindBox.value = "step";
      fill();
      const steps = stepsOf(name);
      const nearest = steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a), steps[0]);
      stepBox.value = String(nearest);
      apply(nearest === step ? "" : `nothing of step ${step} stands here; the nearest is step ${nearest}`);
    };
    bar.append(...(blocks.length > 1 ? [stageLabel] : []), kindLabel, stepLabel, back, on, told);
    fill();
    apply();
  };

  // --- before and after ----------------------------------------------------------------------------------------------

  const startProblems = () => {
    const bar = controls("problems");
    if (!bar) return;
    const blocks = $$(".pairing");
    const label = (block) => `${block.dataset.pair}, ${block.dataset.way}`;
    let current = blocks[0];
    const kinds = new Set(["broken", "fixed", "worse", "better"]);
    const buttons = new Map();
    const apply = () => {
      for (const block of blocks) show(block, block === current);
      for (const [kind, button] of buttons) {
        button.setAttribute("aria-pressed", String(kinds.has(kind)));
        show(button, !!$(`[data-kind=${kind}]`, current));
      }
      for (const problem of $$("[data-kind]", current)) show(problem, kinds.has(problem.dataset.kind));
    };
    const [box] = select("models", blocks.map((block, i) => [String(i), label(block)]), (value) => { current = blocks[Number(value)]; apply(); });
    const set = make("fieldset", {}, make("legend", {}, "show"));
    for (const kind of ["broken", "worse", "same", "better", "fixed"]) {
      const button = make("button", { type: "button" }, kind);
      button.addEventListener("click", () => { if (!kinds.delete(kind)) kinds.add(kind); apply(); });
      buttons.set(kind, button);
      set.append(button);
    }
    bar.append(...(blocks.length > 1 ? [box] : []), set);
    apply();
  };

  // What scrolls has to be reached by keyboard; which text does is known when it is on the page.
  document.addEventListener("toggle", (event) => {
    for (const text of $$(".card pre", event.target)) {
      if (text.scrollHeight <= text.clientHeight) continue;
      for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", "completion"]]) text.setAttribute(name, value);
    }
  }, true);

  startGroups();
  startProblems();
  startCurves();
  document.documentElement.dataset.drawn = String(Math.round(performance.now()));
})();
