// A long list that draws only the rows in sight, so that ten thousand nodes cost as much as forty.

class List {
  /** `row(item, index)` makes a row; `keys` maps a key's name to what it does with the active item. */
  constructor(host, { role = "listbox", rowRole = "option", height = 26, row, pick, keys = {}, label }) {
    Object.assign(this, { host, height, row, pick, keys, rowRole, items: [], active: 0 });
    this.inner = h("div", { class: "rows", role: "presentation" });
    fill(host, { role, tabindex: 0, "aria-label": label }, [this.inner]);
    // Both are noted when they change: to ask for them after drawing would make the browser lay out the page at once.
    this.top = this.tall = 0;
    host.addEventListener("scroll", () => {
      this.top = host.scrollTop;
      this.draw();
    });
    host.addEventListener("keydown", (e) => this.key(e));
    host.addEventListener("click", (e) => this.click(e));
    new ResizeObserver(([entry]) => {
      this.tall = entry.contentRect.height;
      if (this.tall) this.draw();
      if (this.wanted !== undefined) this.go(this.wanted);
    }).observe(host);
  }

  set(items, active = Math.min(this.active, Math.max(0, items.length - 1))) {
    this.items = items;
    this.active = active;
    this.inner.style.setProperty("height", `${items.length * this.height}px`);
    this.draw();
  }

  draw() {
    if (!this.tall) return; // in a tab that is not shown
    const first = Math.max(0, Math.floor(this.top / this.height) - 4);
    const last = Math.min(this.items.length, Math.ceil((this.top + this.tall) / this.height) + 4);
    const rows = [];
    for (let i = first; i < last; i++) rows.push(this.place(i));
    this.inner.replaceChildren(...rows);
    if (this.items.length) this.host.setAttribute("aria-activedescendant", `${this.host.id}-${this.active}`);
    else this.host.removeAttribute("aria-activedescendant");
  }

  place(i) {
    const row = this.row(this.items[i], i);
    fill(
      row,
      {
        id: `${this.host.id}-${i}`,
        role: this.rowRole,
        "data-row": i,
        "aria-posinset": i + 1,
        "aria-setsize": this.items.length,
        css: { top: `${i * this.height}px`, height: `${this.height}px` },
      },
      [],
    );
    row.classList.add("row");
    row.classList.toggle("active", i === this.active);
    return row;
  }

  key(e) {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };
    const item = this.items[this.active];
    if (e.key in moves) this.go(Math.min(this.items.length - 1, Math.max(0, this.active + moves[e.key])));
    else if (e.key === "Enter" && item) this.pick(item);
    else if (this.keys[e.key] && item) this.keys[e.key](item);
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  click(e) {
    const row = e.target.closest("[data-row]");
    if (!row || e.target.closest("[data-own]")) return;
    this.active = Number(row.dataset.row);
    this.draw();
    this.pick(this.items[this.active]);
  }

  go(index) {
    this.active = Math.max(0, index);
    this.wanted = this.tall ? undefined : index; // for when the tab is shown
    const top = this.active * this.height;
    if (this.tall && top < this.top) this.scroll(top);
    else if (this.tall && top + this.height > this.top + this.tall) this.scroll(top + this.height - this.tall);
    this.draw();
  }

  scroll(top) {
    this.host.scrollTop = this.top = top;
  }
}
