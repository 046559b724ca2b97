// Buttons, fields and keys.

function bindControls(app) {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("query", "input", (e) => app.search(e.target.value));
  on("query", "keydown", (e) => queryKey(app, e));
  on("colour", "change", (e) => app.setColour(e.target.value));
  on("against", "change", (e) => app.setAgainst(e.target.value));
  on("slider", "input", (e) => app.setStage(app.panels.shownStages()[Number(e.target.value)], true));
  on("previous", "click", () => app.step(-1));
  on("next", "click", () => app.step(1));
  on("shallower", "click", () => app.setDepth(app.state.depth - 1));
  on("deeper", "click", () => app.setDepth(app.state.depth + 1));
  on("zoom-in", "click", () => app.canvas.zoom(1.3));
  on("zoom-out", "click", () => app.canvas.zoom(1 / 1.3));
  on("zoom-fit", "click", () => app.canvas.fit());
  on("constants", "change", (e) => app.setOption("constants", e.target.checked));
  on("fold", "change", (e) => app.setOption("fold", e.target.checked));
  on("columns", "change", (e) => app.setColumns(e.target.checked));
  on("hide-same", "change", (e) => app.setOption("hideSame", e.target.checked));
  on("theme", "click", () => app.setTheme());
  on("help-button", "click", () => $("help").showModal());
  on("help-close", "click", () => $("help").close());
  on("show-left", "click", () => document.body.classList.toggle("left"));
  on("show-right", "click", () => document.body.classList.toggle("right"));
  on("scrim", "click", () => document.body.classList.remove("left", "right"));
  bindGrips(app);
  bindExport(app);
  bindTabs(app);
  document.addEventListener("keydown", (e) => pageKey(app, e));
  app.canvas.svg.addEventListener("keydown", (e) => canvasKey(app, e));
  window.addEventListener("hashchange", () => reload(app));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    applyTheme(app.state.theme);
    app.redraw();
  });
}

function bindExport(app) {
  for (const button of document.querySelectorAll("[data-export]")) {
    button.addEventListener("click", () => {
      $("export").open = false;
      app.export(button.dataset.export);
    });
  }
  document.addEventListener("click", (e) => {
    if (!$("export").contains(e.target)) $("export").open = false;
  });
}

function bindTabs(app) {
  for (const group of ["left", "right"]) {
    const tabs = [...document.querySelectorAll(`[data-${group}]`)];
    for (const tab of tabs) {
      tab.addEventListener("click", () => app.showTab(group, tab.dataset[group]));
      tab.addEventListener("keydown", (e) => {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[e.key],
          shown = tabs.filter((t) => !t.hidden);
        if (!by) return;
        const next = shown[(shown.indexOf(tab) + by + shown.length) % shown.length];
        app.showTab(group, next.dataset[group]);
        next.focus();
        e.preventDefault();
      });
    }
  }
}

function queryKey(app, e) {
  if (e.key === "Enter" && app.panels.results.items.length) app.panels.results.pick(app.panels.results.items[app.panels.results.active]);
  else if (e.key === "ArrowDown") $("results").focus();
  else if (e.key === "Escape") {
    app.search("");
    app.canvas.svg.focus();
  } else return;
  e.preventDefault();
  e.stopPropagation();
}

function pageKey(app, e) {
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName) || $("help").open) return;
  const acts = {
    "/": () => {
      document.body.classList.add("left");
      $("query").focus();
    },
    "?": () => $("help").showModal(),
    "[": () => app.step(-1),
    "]": () => app.step(1),
    "+": () => app.canvas.zoom(1.3),
    "=": () => app.canvas.zoom(1.3),
    "-": () => app.canvas.zoom(1 / 1.3),
    0: () => app.canvas.fit(),
    ">": () => app.setDepth(app.state.depth + 1),
    "<": () => app.setDepth(app.state.depth - 1),
    Escape: () => {
      document.body.classList.remove("left", "right");
      app.select(null);
    },
  };
  if (!Object.hasOwn(acts, e.key)) return;
  e.preventDefault();
  acts[e.key]();
}

function canvasKey(app, e) {
  const ways = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  const box = app.tree.byId.get(app.state.selected),
    seen = box && app.canvas.seen.includes(box);
  if (ways[e.key]) {
    const next = seen ? app.canvas.neighbour(box, ...ways[e.key]) : app.canvas.seen[1];
    if (next) app.select(next, true);
  } else if ((e.key === "Enter" || e.key === " ") && seen && !box.node) app.toggle(box);
  else return;
  e.preventDefault();
  e.stopPropagation();
}

/** The address was changed by hand or by the Back button. */
function reload(app) {
  app.loadState();
  const { view } = app.state;
  app.rebuild();
  if (view) [app.canvas.view.x, app.canvas.view.y, app.canvas.view.k] = view;
  app.refresh({ fit: view ? null : "readable" });
}
