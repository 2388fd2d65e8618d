/* The monitor page: what the server sends as events, shown as text only, never as markup. */
"use strict";
(() => {
  const el = window.cineElement;
  const at = (id) => document.getElementById(id);
  const LATE_MS = 5000; // without news for so long the server is not there
  const MOST_LINES = 300; // of the log
  const MARKS = { running: "●", done: "✓", damaged: "✗", stopped: "–" };
  const WORDS = { running: "running", done: "done", damaged: "data or images lost", stopped: "the peer left" };
  const viewer = new window.CineViewer(at("viewer"));
  const open = new Set(); // scans of which all is shown
  let running = [], over = [], picked = "", mapsWanted = false, heard = 0, loading = false, again = false;
  let loaded = { scan: "", loops: [] };

  // --- words ---------------------------------------------------------------------------------------------------------

  const many = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;

  function bytes(count) {
    if (count === null || count === undefined) return "–";
    for (const [size, unit] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
      if (count >= size) return `${(count / size).toPrecision(3)} ${unit}`;
    }
    return `${count} B`;
  }

  function time(seconds) {
    if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
    if (seconds < 120) return `${seconds.toFixed(1)} s`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 120) return `${minutes} min`;
    return minutes < 2880 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} days`;
  }

  /** The time of day, with the day where it is not today. */
  function clock(seconds) {
    const then = new Date(1000 * seconds), hours = then.toLocaleTimeString([], { hour12: false });
    if (then.toDateString() === new Date().toDateString()) return hours;
    return `${then.toLocaleDateString([], { day: "numeric", month: "short" })} ${hours}`;
  }

  const nameOf = (scan) => [scan.protocol || "no protocol", scan.patient, scan.pipeline].filter(Boolean).join(" · ");

  /** The methods that made the slices, and how many each. */
  function methodsOf(scan) {
    const names = Object.entries(scan.methods);
    if (names.length < 2) return names.length ? names[0][0] : scan.method || "–";
    return names.map(([name, count]) => `${name} (${count})`).join(", ");
  }

  /** Why a scan needs a look, in one line; empty where it does not. */
  function reason(scan) {
    const lost = scan.problems.filter((problem) => problem.damage);
    if (lost.length) return lost[0].text;
    const notes = Object.keys(scan.notes);
    if (!scan.as_asked) {
      const why = notes.find((note) => note.includes("instead of")) || notes[0] || "";
      return `served by ${methodsOf(scan)} instead of ${scan.method}${why ? `: ${why}` : ""}`;
    }
    return [...notes, ...scan.problems.map((problem) => problem.text)][0] || "";
  }

  function tone(scan) {
    if (scan.verdict === "running") return "running";
    if (scan.verdict !== "done") return "bad";
    return scan.as_asked && !scan.problems.length ? "good" : "warn";
  }

  // --- parts ---------------------------------------------------------------------------------------------------------

  const text = (tag, content, className = "") => el(tag, { textContent: content, className });
  const texts = (tag, contents) => contents.filter(Boolean).map((content) => text(tag, content));

  function meter(share, className = "") {
    const inner = el("b", { className });
    inner.style.width = `${Math.min(100, Math.max(0, 100 * share)).toFixed(1)}%`;
    return el("span", { className: "meter" }, inner);
  }

  function fact(name, value, more, share) {
    const bar = share === undefined ? [] : [el("dd", {}, meter(share, share > 0.9 ? "full" : ""))];
    return el("div", {}, text("dt", name), text("dd", value), ...bar, text("dd", more, "muted"));
  }

  function showServer(server) {
    const { load, memory, scans } = server;
    const words = { well: "well", doubtful: "needs a look", ill: "not well" }[server.health];
    const busy = running.length ? `, ${many(running.length, "scan")} running` : ", idle";
    at("host").textContent = server.host;
    at("state").textContent = words + busy;
    at("state").className = `state ${{ well: "good", doubtful: "warn", ill: "bad" }[server.health]}`;
    document.title = `${running.length ? "● " : ""}${words}${busy} – cinestream`;
    at("doubts").replaceChildren(...[server.fault, ...server.doubts].filter(Boolean).map((doubt) =>
      text("p", doubt, `verdict ${doubt === server.fault ? "bad" : "warn"}`)));
    const lost = (scans.damaged || 0) + (scans.stopped || 0);
    const facts = [
      fact("Scans", String((scans.done || 0) + lost), lost ? `${lost} with losses` : "none with losses"),
      fact("Images", String(server.images), many(server.readouts, "readout")),
      fact("Connections", String(load.connections), `of ${load.most_connections}`),
      fact("Queue", bytes(load.queue_bytes), `of ${bytes(load.queue_limit)}`, load.queue_bytes / load.queue_limit),
      fact("Scan memory", bytes(load.memory_bytes), `of ${bytes(load.memory_limit)}`, load.memory_bytes / load.memory_limit),
    ];
    if (memory.host && memory.host_free !== null) {
      const used = 1 - memory.host_free / memory.host;
      facts.push(fact("Memory", bytes(memory.process), `${bytes(memory.host_free)} of ${bytes(memory.host)} free`, used));
    }
    if (memory.gpu) {
      const used = 1 - memory.gpu_free / memory.gpu;
      facts.push(fact("GPU", bytes(memory.gpu_process), `${bytes(memory.gpu_free)} of ${bytes(memory.gpu)} free`, used));
    }
    at("facts").replaceChildren(...facts);
    const workers = server.workers ? ` for ${many(server.workers, "worker")}` : "";
    at("about").textContent = `cinestream ${server.version} takes scans on ${server.listens}${workers}, up for ` +
      `${time(server.now - server.began)}. For research only; not a medical device.`;
  }

  // --- scans ---------------------------------------------------------------------------------------------------------

  function card(scan) {
    const known = scan.promised && scan.slices <= scan.promised;
    const late = scan.deadline && scan.latency > scan.deadline, waits = scan.late && !late;
    const latency = `latency ${time(scan.latency)}${scan.deadline ? ` of ${time(scan.deadline)}` : ""}`;
    const numbers = [
      known ? `${scan.slices} of ${many(scan.promised, "slice")}` : many(scan.slices, "slice"), many(scan.images, "image"),
      many(scan.readouts, "readout"), `running for ${time(scan.seconds)}`,
    ];
    if (scan.slices) numbers.push(`made by ${methodsOf(scan)}`);
    const line = el("p", { className: "numbers" }, ...texts("span", numbers));
    if (scan.slices) line.append(text("span", latency, late ? "late" : ""));
    const peer = [scan.patient, scan.pipeline, `${scan.door} ${scan.peer}`].filter(Boolean).join(" · ");
    const now = scan.running ? `Now ${scan.running}, for ${time(scan.seconds_running)}.` : "Waiting for readouts.";
    const made = el("div", { className: "scan" },
      el("p", { className: "name" }, text("b", scan.protocol || "no protocol"), text("span", peer, "muted")),
      ...(known ? [meter(scan.slices / scan.promised)] : []), line, text("p", now, waits ? "late" : "muted"));
    const why = reason(scan);
    if (why) made.append(text("p", why, tone({ ...scan, verdict: "done" }) === "good" ? "muted" : "late"));
    return made;
  }

  function showRunning() {
    const cards = running.map(card);
    at("running").replaceChildren(...(cards.length ? cards : [text("p", "No scan is running.", "muted")]));
  }

  function details(scan) {
    const stages = Object.entries(scan.stages).map(([stage, seconds]) => `${stage} ${time(seconds)}`).join(", ") || "–";
    const lines = {
      "Scan": `${scan.scan}, ${scan.door} ${scan.peer}, ${WORDS[scan.verdict]}`,
      "Asked for": `${scan.pipeline || "no pipeline"}, method ${scan.method || "not known"}`,
      "Made by": methodsOf(scan),
      "Counts": `${many(scan.images, "image")} of ${many(scan.slices, "slice")} from ${many(scan.readouts, "readout")}`,
      "Time by stage": stages,
    };
    const noted = [
      ...scan.problems.map((problem) => [problem.text, problem.count, problem.damage]),
      ...Object.entries(scan.notes).map(([note, count]) => [note, count, false]),
    ];
    return el("div", { className: "details" },
      el("dl", {}, ...Object.entries(lines).flatMap(([name, content]) => [text("dt", name), text("dd", content)])),
      el("ul", {}, ...noted.map(([note, count, damage]) =>
        text("li", count > 1 ? `${note} (${count} times)` : note, damage ? "damage" : "notice"))));
  }

  const HEADS = ["", "began", "protocol", "pipeline", "made by", "slices", "time", "latency", "SNR", "what to know"];

  function rows(scan) {
    const mark = el("span", { className: `mark ${tone(scan)}`, title: WORDS[scan.verdict], textContent: MARKS[scan.verdict] });
    const cells = [
      mark, clock(scan.began), scan.protocol || "–", scan.pipeline || "–", methodsOf(scan), String(scan.slices),
      time(scan.seconds), scan.slices ? time(scan.latency) : "–", scan.snr === null ? "–" : String(Math.round(scan.snr)),
      reason(scan) || "–",
    ].map((content, i) => el("td", { "data-name": HEADS[i] }, content));
    if (scan.patient) cells[2].append(el("br"), text("span", scan.patient, "muted"));
    if (!scan.as_asked) cells[4].classList.add("late");
    const opened = open.has(scan.scan), row = el("tr", { tabIndex: 0, className: opened ? "open" : "" }, ...cells);
    row.setAttribute("aria-expanded", opened);
    const toggle = () => {
      if (!open.delete(scan.scan)) open.add(scan.scan);
      if (open.has(scan.scan) && scan.loops.length) pick(scan.scan);
      showOver();
    };
    row.onclick = () => { if (!String(window.getSelection())) toggle(); };
    row.onkeydown = (event) => { if (event.key === "Enter") toggle(); };
    return opened ? [row, el("tr", { className: "more" }, el("td", { colSpan: HEADS.length }, details(scan)))] : [row];
  }

  function showOver() {
    at("over").replaceChildren(over.length
      ? el("table", { className: "scans" },
        el("thead", {}, el("tr", {}, ...HEADS.map((head) => text("th", head)))), el("tbody", {}, ...over.flatMap(rows)))
      : text("p", "None yet.", "muted"));
  }

  // --- images --------------------------------------------------------------------------------------------------------

  function pick(scan) {
    picked = scan;
    showImages();
  }

  function showImages() {
    const scans = [...running, ...over].filter((scan) => scan.loops.length);
    at("images").hidden = !scans.length;
    if (!scans.length) return;
    const chosen = scans.find((one) => one.scan === picked), scan = chosen || scans[0], select = at("pick");
    const choices = scans.map((one) => [one.scan, `${MARKS[one.verdict]} ${clock(one.began)} ${nameOf(one)}`]);
    if (select.dataset.choices !== JSON.stringify(choices)) {
      select.dataset.choices = JSON.stringify(choices);
      select.replaceChildren(...[["", "the latest scan"], ...choices].map(([value, name]) =>
        el("option", { value, textContent: name })));
    }
    select.value = chosen ? picked : "";
    const snr = scan.snr === null ? "" : `SNR ${Math.round(scan.snr)}`;
    const made = methodsOf(scan), by = made === scan.pipeline ? "" : made; // often the pipeline has its name
    const when = scan.verdict === "running" ? "running" : running.length ? `earlier scan of ${clock(scan.began)}` : clock(scan.began);
    at("shown").textContent = [nameOf(scan), by, when, many(scan.loops.length, "loop"), snr].filter(Boolean).join(" · ");
    load(scan);
  }

  async function ask(path) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  }

  /** Fetch the loops that are new, one after the other. */
  async function load(scan) {
    if (document.hidden) return;
    if (loading) { again = true; return; }
    loading = true;
    try {
      const fresh = loaded.scan !== scan.scan, known = fresh ? [] : loaded.loops, loops = [];
      let changed = fresh || scan.loops.length !== known.length;
      for (const [i, { name, version }] of scan.loops.entries()) {
        const same = known.find((one) => one.name === name && one.version === version);
        loops.push(same || { name, version, facts: await ask(`/loops/${scan.scan}/${i}`) });
        changed ||= !same;
      }
      if (changed) {
        if (fresh) viewer.setFocus(null);
        loaded = { scan: scan.scan, loops };
        await viewer.set(loops.map((one) => one.facts), loops[0].facts.seconds);
        at("viewer").dataset.scan = scan.scan;
        showMaps();
      }
    } catch (error) {
      console.warn(String(error));
    } finally {
      loading = false;
    }
    if (again) {
      again = false;
      showImages();
    }
  }

  /** Show the coil maps of the enlarged loop, or of the first. */
  function showMaps() {
    const number = viewer.focus || 0;
    at("mapsview").hidden = !mapsWanted || !loaded.loops.length;
    if (at("mapsview").hidden) return;
    at("mapspicture").src = `/maps/${loaded.scan}/${number}?version=${loaded.loops[number].version}`;
    at("mapsname").textContent = `${loaded.loops[number].name}, magnitude`;
  }

  at("pick").onchange = () => pick(at("pick").value);
  at("maps").onclick = () => {
    mapsWanted = !mapsWanted;
    at("maps").setAttribute("aria-pressed", mapsWanted);
    showMaps();
  };
  viewer.onfocus = showMaps;
  document.addEventListener("visibilitychange", () => { if (!document.hidden) showImages(); });

  // --- news ----------------------------------------------------------------------------------------------------------

  function log(lines) {
    const box = at("log"), low = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
    for (const [, level, content] of lines) box.append(text("span", `${content}\n`, level.toLowerCase()));
    while (box.childElementCount > MOST_LINES) box.firstChild.remove();
    if (low) box.scrollTop = box.scrollHeight;
  }

  const news = new EventSource("/events");
  const on = (name, act) => news.addEventListener(name, (event) => {
    heard = Date.now();
    act(JSON.parse(event.data));
  });
  on("state", (state) => {
    running = state.running;
    showServer(state.server);
    showRunning();
    showImages();
  });
  on("over", (scans) => {
    over = scans;
    showOver();
    showImages();
  });
  on("log", log);
  news.onopen = () => at("log").replaceChildren();
  setInterval(() => {
    if (Date.now() - heard < LATE_MS) return;
    at("state").className = "state bad";
    at("state").textContent = heard ? `no news since ${clock(heard / 1000)}` : "no answer";
    document.title = "no answer – cinestream";
  }, 1000);
})();
