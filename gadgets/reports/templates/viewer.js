/* Cine loops on canvases: all panels of a viewer share time, zoom and window. Used by the report and the monitor page.
   A panel is one PNG with the frames as tiles, and facts; gadgets/reports/viewer.py makes both. */
"use strict";
(() => {
  const SPEEDS = [[0.25, "¼ ×"], [0.5, "½ ×"], [1, "1 ×"], [2, "2 ×"]];
  const DRAG = 4; // px from which a click is a drag
  const MOST_ZOOM = 12;
  const HELP = "Click: enlarge, then place the line of the profile. Drag: move. Right drag: window. " +
    "Ctrl + wheel: zoom. Space: pause. Arrows: frames.";
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function element(tag, properties, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name.includes("-") || name === "role") made.setAttribute(name, value);
      else made[name] = value;
    }
    made.append(...children);
    return made;
  }

  /** Columns of a grid of so many loops that leave few places empty. */
  function across(count) {
    const choices = count < 5 ? [count] : count > 12 ? [6, 5, 4] : [4, 3];
    return choices.reduce((best, one) => ((one - (count % one)) % one < (best - (count % best)) % best ? one : best)) || 1;
  }

  /** One loop on one canvas. */
  class Panel {
    constructor() {
      this.canvas = element("canvas", { "role": "img" });
      this.caption = element("figcaption");
      this.figure = element("figure", {}, this.canvas, this.caption);
      this.scratch = document.createElement("canvas");
      this.pencil = this.scratch.getContext("2d", { willReadFrequently: true });
      this.facts = null;
    }

    async load(facts) {
      const image = new Image();
      image.src = facts.source;
      await image.decode();
      this.facts = facts;
      this.image = image;
      this.levels = new Array(facts.frames);
      this.scratch.width = facts.columns;
      this.scratch.height = facts.rows;
      this.pixels = this.pencil.createImageData(facts.columns, facts.rows);
      this.shades = new Uint32Array(this.pixels.data.buffer);
      this.line = this.line === undefined || facts.line >= facts.columns ? facts.line : this.line;
      this.caption.textContent = facts.caption;
      this.canvas.setAttribute("aria-label", facts.caption);
    }

    /** Gray values of a frame, row by row. */
    gray(frame) {
      if (!this.levels[frame]) {
        const { columns, rows, across, gap } = this.facts;
        const x = (frame % across) * (columns + gap), y = Math.floor(frame / across) * (rows + gap);
        this.pencil.drawImage(this.image, x, y, columns, rows, 0, 0, columns, rows);
        const found = this.pencil.getImageData(0, 0, columns, rows).data;
        const levels = new Uint8Array(columns * rows);
        for (let i = 0; i < levels.length; i++) levels[i] = found[4 * i];
        this.levels[frame] = levels;
      }
      return this.levels[frame];
    }

    /** The part that is shown without any zoom: x, y, width, height in pixels. */
    base(whole) {
      const { shown, columns, rows } = this.facts;
      return whole ? [0, 0, columns, rows] : [shown[0], shown[1], shown[2] - shown[0], shown[3] - shown[1]];
    }

    box(view) {
      const [left, top, wide, high] = this.base(view.whole), { columns, rows } = this.facts;
      const width = wide / view.zoom, height = high / view.zoom;
      return [
        clamp(left + wide * (0.5 + view.x) - width / 2, 0, columns - width),
        clamp(top + high * (0.5 + view.y) - height / 2, 0, rows - height), width, height,
      ];
    }

    fit(canvas, aspect) {
      canvas.style.aspectRatio = String(aspect);
      const width = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
      const height = Math.round(width / aspect);
      if (width && (canvas.width !== width || canvas.height !== height)) Object.assign(canvas, { width, height });
      return width > 0;
    }

    draw(frame, view, table, marked) {
      const [left, top, wide, high] = this.box(view);
      if (!this.fit(this.canvas, wide / (high * this.facts.tall))) return;
      const levels = this.gray(frame);
      for (let i = 0; i < levels.length; i++) this.shades[i] = table[levels[i]];
      this.pencil.putImageData(this.pixels, 0, 0);
      const ink = this.canvas.getContext("2d"), { width, height } = this.canvas;
      ink.imageSmoothingQuality = "high";
      ink.drawImage(this.scratch, left, top, wide, high, 0, 0, width, height);
      if (marked) {
        const x = ((this.line + 0.5 - left) / wide) * width;
        ink.strokeStyle = "#8fc7f5";
        ink.lineWidth = Math.max(1, width / 400);
        ink.setLineDash([width / 60, width / 60]);
        ink.beginPath();
        ink.moveTo(x, 0);
        ink.lineTo(x, height);
        ink.stroke();
        ink.setLineDash([]);
      }
    }

    /** One column over time, which runs to the right. */
    drawProfile(canvas, frame, view, table) {
      const { frames, columns } = this.facts, [, top, , high] = this.box(view);
      const first = Math.floor(top), rows = Math.max(1, Math.round(high));
      const aspect = this.canvas.width / this.canvas.height;
      if (!this.fit(canvas, canvas.offsetTop > this.canvas.offsetTop ? 1.6 : (aspect * canvas.clientWidth) / this.canvas.clientWidth)) return;
      const strip = document.createElement("canvas");
      Object.assign(strip, { width: frames, height: rows });
      const pen = strip.getContext("2d"), pixels = pen.createImageData(frames, rows);
      const shades = new Uint32Array(pixels.data.buffer);
      for (let t = 0; t < frames; t++) {
        const levels = this.gray(t);
        for (let y = 0; y < rows; y++) shades[y * frames + t] = table[levels[(first + y) * columns + this.line] || 0];
      }
      pen.putImageData(pixels, 0, 0);
      const ink = canvas.getContext("2d"), { width, height } = canvas;
      ink.imageSmoothingQuality = "high";
      ink.drawImage(strip, 0, 0, frames, rows, 0, 0, width, height);
      ink.fillStyle = "rgba(143, 199, 245, 0.8)";
      ink.fillRect(((frame + 0.5) / frames) * width - 1, 0, 2, height);
    }
  }

  /** Several loops that run together. */
  class Viewer {
    constructor(host, options = {}) {
      this.host = host;
      this.options = options;
      this.panels = [];
      this.focus = null;
      this.time = 0;
      this.speed = 1;
      this.playing = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.window = { level: 0.5, width: 1 };
      this.view = { zoom: 1, x: 0, y: 0, whole: false };
      this.visible = true;
      this.build();
      this.dirty = true;
      new IntersectionObserver((entries) => { // several, oldest first, where the browser was busy
        this.visible = entries.at(-1).isIntersecting;
        this.dirty = true;
      }).observe(host);
      new ResizeObserver(() => { this.dirty = true; }).observe(host);
      Viewer.all.push(this);
      if (Viewer.all.length === 1) requestAnimationFrame(Viewer.tick);
    }

    static tick(now) {
      const passed = Math.min(0.25, (now - (Viewer.now || now)) / 1000);
      Viewer.now = now;
      Viewer.all = Viewer.all.filter((viewer) => viewer.host.isConnected);
      for (const viewer of Viewer.all) viewer.step(passed);
      requestAnimationFrame(Viewer.tick);
    }

    build() {
      const button = (text, title, act) => element("button", { type: "button", textContent: text, title, onclick: act });
      const slider = (name, low, high, act) => {
        const made = element("input", { type: "range", min: low, max: high, step: "any", "aria-label": name });
        made.oninput = () => act(Number(made.value));
        return made;
      };
      this.play = button("", "", () => { this.playing = !this.playing; this.show(); });
      this.frames = element("input", { type: "range", min: 0, step: 1, "aria-label": "Frame" });
      this.frames.oninput = () => this.go(Number(this.frames.value));
      this.count = element("span", { className: "count" });
      this.rate = element("select", { title: "Speed", "aria-label": "Speed" });
      for (const [value, text] of SPEEDS) this.rate.append(element("option", { value, textContent: text }));
      this.rate.value = "1";
      this.rate.onchange = () => { this.speed = Number(this.rate.value); };
      this.level = slider("Level", 0, 1, (value) => this.setWindow(value, this.window.width));
      this.width = slider("Window", 0.05, 2, (value) => this.setWindow(this.window.level, value));
      this.part = button("", "", () => { Object.assign(this.view, { whole: !this.view.whole, zoom: 1, x: 0, y: 0 }); this.show(); });
      this.back = button("all slices", "Show all loops again", () => this.setFocus(null));
      this.bar = element("div", { className: "bar", title: HELP },
        element("span", { className: "group grow" }, this.play, this.frames, this.count, this.rate),
        element("span", { className: "group" }, button("−", "Zoom out", () => this.zoom(1 / 1.4)),
          button("+", "Zoom in", () => this.zoom(1.4)), this.part),
        element("span", { className: "group" }, element("label", {}, "window ", this.width),
          element("label", {}, "level ", this.level)),
        element("span", { className: "group" }, button("reset", "As it was", () => this.reset()), this.back));
      this.profile = element("canvas", { "role": "img", "aria-label": "Temporal profile" });
      this.profileFigure = element("figure", { className: "profile" }, this.profile,
        element("figcaption", { textContent: "Temporal profile along the dashed line" }));
      this.stage = element("div", { className: "stage" });
      this.grid = element("div", { className: "grid" });
      this.host.replaceChildren(this.stage, this.grid, this.bar);
      this.host.tabIndex = 0;
      this.host.onkeydown = (event) => this.onKey(event);
      this.reset();
    }

    /** Show loops: an array of facts with sources; those that stay keep their place in time. */
    async set(facts, seconds) {
      const panels = facts.map((_, i) => this.panels[i] || this.make());
      await Promise.all(facts.map((one, i) => (panels[i].facts === one ? null : panels[i].load(one))));
      this.panels = panels;
      this.seconds = seconds;
      if (this.focus !== null && this.focus >= panels.length) this.focus = null;
      this.arrange();
    }

    make() {
      const panel = new Panel();
      let from = null;
      panel.canvas.onpointerdown = (event) => {
        from = { x: event.clientX, y: event.clientY, moved: false, view: { ...this.view }, window: { ...this.window } };
        panel.canvas.setPointerCapture(event.pointerId);
      };
      panel.canvas.onpointermove = (event) => {
        if (!from) return;
        const x = event.clientX - from.x, y = event.clientY - from.y;
        from.moved ||= Math.hypot(x, y) > DRAG;
        if (!from.moved) return;
        const { clientWidth, clientHeight } = panel.canvas;
        if (event.buttons & 2 || event.shiftKey) {
          this.setWindow(from.window.level + y / 400, from.window.width * Math.exp(x / 200));
        } else {
          this.view.x = clamp(from.view.x - x / clientWidth / this.view.zoom, -0.5, 0.5);
          this.view.y = clamp(from.view.y - y / clientHeight / this.view.zoom, -0.5, 0.5);
          this.dirty = true;
        }
      };
      panel.canvas.onpointerup = (event) => {
        const click = from && !from.moved && event.button === 0;
        from = null;
        if (click) this.onClick(panel, event);
      };
      panel.canvas.onpointercancel = () => { from = null; };
      panel.canvas.oncontextmenu = (event) => event.preventDefault();
      panel.canvas.addEventListener("wheel", (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
      }, { passive: false });
      return panel;
    }

    onClick(panel, event) {
      const number = this.panels.indexOf(panel);
      if (this.focus !== number) return this.setFocus(number);
      const [left, , wide] = panel.box(this.view);
      panel.line = clamp(Math.floor(left + (event.offsetX / panel.canvas.clientWidth) * wide), 0, panel.facts.columns - 1);
      this.dirty = true;
    }

    onKey(event) {
      if (event.target !== this.host) return;
      const acts = {
        " ": () => this.play.click(),
        "ArrowRight": () => this.go(this.frame() + 1),
        "ArrowLeft": () => this.go(this.frame() - 1),
        "+": () => this.zoom(1.4),
        "-": () => this.zoom(1 / 1.4),
        "Escape": () => this.setFocus(null),
      };
      if (acts[event.key]) { acts[event.key](); event.preventDefault(); }
    }

    setFocus(number) {
      this.focus = number;
      this.arrange();
      if (this.onfocus) this.onfocus();
    }

    setWindow(level, width) {
      this.window = { level: clamp(level, 0, 1.5), width: clamp(width, 0.02, 3) };
      this.show();
    }

    zoom(factor) {
      this.view.zoom = clamp(this.view.zoom * factor, 1, MOST_ZOOM);
      if (this.view.zoom === 1) Object.assign(this.view, { x: 0, y: 0 });
      this.show();
    }

    reset() {
      this.view = { zoom: 1, x: 0, y: 0, whole: false };
      this.setWindow(0.5, 1);
    }

    /** Put the enlarged loop with its profile above the others. */
    arrange() {
      const single = this.panels.length === 1, focus = single ? 0 : this.focus;
      this.marked = focus;
      const enlarged = focus === null ? [] : [this.panels[focus].figure, this.profileFigure];
      this.stage.replaceChildren(...enlarged);
      this.grid.replaceChildren(...this.panels.filter((_, i) => i !== focus).map((panel) => panel.figure));
      const columns = focus === null ? this.options.across || across(this.panels.length) : 8;
      this.host.style.setProperty("--across", columns);
      this.host.classList.toggle("enlarged", focus !== null);
      this.back.hidden = single || focus === null;
      this.part.hidden = this.panels.every(({ facts }) =>
        String(facts.shown) === String([0, 0, facts.columns, facts.rows]));
      this.show();
    }

    go(frame) {
      const most = this.most();
      if (!most) return;
      this.playing = false;
      this.time = ((((frame % most) + most) % most) + 0.5) * this.seconds;
      this.show();
    }

    most() { return Math.max(0, ...this.panels.map((panel) => (panel.facts ? panel.facts.frames : 0))); }

    /** The frame of the longest loop; the others run slower, so that all stay in step. */
    frame() {
      const most = this.most();
      return most ? Math.floor(this.time / this.seconds) % most : 0;
    }

    step(passed) {
      const most = this.most();
      if (!this.visible || !most) return;
      if (this.playing) this.time = (this.time + passed * this.speed) % (most * this.seconds);
      const frame = this.frame();
      if (frame !== this.shown || this.dirty) this.draw(frame, most);
    }

    draw(frame, most) {
      this.shown = frame;
      this.dirty = false;
      const { level, width } = this.window, table = this.table(level - width / 2, width);
      for (const [i, panel] of this.panels.entries()) {
        const own = Math.floor((frame * panel.facts.frames) / most);
        panel.draw(own, this.view, table, i === this.marked);
        if (i === this.marked) panel.drawProfile(this.profile, own, this.view, table);
      }
      this.host.dataset.frame = frame;
      this.frames.max = most - 1;
      this.frames.value = frame;
      this.count.textContent = `${frame + 1}/${most}`;
    }

    /** Shades of all gray values for a window in units of white. */
    table(black, width) {
      const white = this.panels.length && this.panels[0].facts ? this.panels[0].facts.white : 255;
      const table = new Uint32Array(256);
      for (let i = 0; i < 256; i++) {
        const shade = clamp(Math.round((255 * (i / white - black)) / width), 0, 255);
        table[i] = (0xff000000 | (shade << 16) | (shade << 8) | shade) >>> 0;
      }
      return table;
    }

    show() {
      this.play.textContent = this.playing ? "❚❚" : "▶";
      this.play.title = this.playing ? "Pause" : "Play";
      this.play.setAttribute("aria-label", this.play.title);
      this.part.textContent = this.view.whole ? "heart" : "whole";
      this.part.title = this.view.whole ? "Show what moves" : "Show the whole field of view";
      this.level.value = this.window.level;
      this.width.value = this.window.width;
      const still = this.view.zoom === 1 ? "pan-y" : "none";
      for (const panel of this.panels) panel.canvas.style.touchAction = still;
      this.dirty = true;
    }
  }
  Viewer.all = [];

  window.CineViewer = Viewer;
  window.cineElement = element;
  document.addEventListener("DOMContentLoaded", () => {
    for (const host of document.querySelectorAll(".viewer[data-loop]")) {
      const { panels, seconds, ...options } = JSON.parse(host.dataset.loop);
      new Viewer(host, options).set(panels, seconds);
    }
  });
})();
