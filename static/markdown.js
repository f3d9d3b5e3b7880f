// A model's words as elements. They are a stranger's: every piece goes in as text, nothing is ever parsed as HTML,
// no image is fetched, and a link is a link only to http(s).

const INLINE = /(`+)([^`]{1,2000})\1|\*\*([^*]{1,2000})\*\*|\*([^*\s][^*]{0,2000})\*|\[([^[\]]{1,300})\]\((https?:\/\/[^\s()]{1,2000})\)|(https?:\/\/[^\s<>"'()[\]`]{1,2000})/g;
const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;

function make(tag, text) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  return element;
}

function link(text, address) {
  const anchor = make("a", text);
  anchor.href = address;
  anchor.title = address;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  return anchor;
}

function inline(parent, text) {
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(at, match.index));
    at = match.index + match[0].length;
    if (match[2] !== undefined) parent.append(make("code", match[2]));
    else if (match[3] !== undefined) inline(parent.appendChild(make("strong")), match[3]);
    else if (match[4] !== undefined) inline(parent.appendChild(make("em")), match[4]);
    else if (match[6] !== undefined) parent.append(link(match[5], match[6]));
    else parent.append(link(match[7], match[7]));
  }
  parent.append(text.slice(at));
  return parent;
}

function codeBlock(text, language) {
  const box = make("div");
  box.className = "copyable block";
  const head = make("div");
  head.className = "copyable-head";
  const button = make("button", "Copy");
  button.type = "button";
  button.className = "small secondary";
  button.dataset.copyCode = "";
  head.append(make("span", language || "text"), button);
  const pre = make("pre");
  pre.tabIndex = 0;
  pre.append(make("code", text));
  box.append(head, pre);
  return box;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function table(lines) {
  const element = make("table");
  const head = element.createTHead().insertRow();
  for (const cell of cells(lines[0])) inline(head.appendChild(make("th")), cell);
  const body = element.createTBody();
  for (const line of lines.slice(2)) {
    const row = body.insertRow();
    for (const cell of cells(line)) inline(row.insertCell(), cell);
  }
  return element;
}

function starts(line, next) {
  return FENCE.test(line) || /^#{1,6}\s/.test(line) || ITEM.test(line) || /^\s*>/.test(line)
    || (line.includes("|") && /^[\s|:-]*-[\s|:-]*$/.test(next ?? ""));
}

function list(lines, start) {
  const ordered = ITEM.exec(lines[start])[3] !== undefined;
  const element = make(ordered ? "ol" : "ul");
  if (ordered) element.start = Number(ITEM.exec(lines[start])[3]);
  let at = start;
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || (match[1].length < 2 && (match[3] !== undefined) !== ordered)) break;
    const words = [match[4]];
    at += 1;
    while (at < lines.length && /^\s{2,}\S/.test(lines[at]) && !ITEM.test(lines[at]) && !FENCE.test(lines[at])) {
      words.push(lines[at].trim());
      at += 1;
    }
    const item = inline(make("li"), words.join("\n"));
    const depth = Math.min(Math.floor(match[1].replace(/\t/g, "  ").length / 2), 2);
    if (depth) item.dataset.depth = depth;
    element.append(item);
    if (lines[at]?.trim() === "" && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  return [element, at];
}

/** The elements for a text in Markdown; a fence that is not closed yet runs to the end. */
export function render(text) {
  const page = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (line.trim() === "") {
      at += 1;
    } else if (fence) {
      const code = [];
      at += 1;
      while (at < lines.length && !lines[at].trim().startsWith(fence[1])) code.push(lines[at++]);
      at += 1;
      page.append(codeBlock(code.join("\n"), fence[2]));
    } else if (/^#{1,6}\s/.test(line)) {
      page.append(inline(make(line.startsWith("###") ? "h4" : "h3"), line.replace(/^#+\s+/, "")));
      at += 1;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      page.append(make("hr"));
      at += 1;
    } else if (ITEM.test(line)) {
      const [element, next] = list(lines, at);
      page.append(element);
      at = next;
    } else if (/^\s*>/.test(line)) {
      const words = [];
      while (at < lines.length && /^\s*>/.test(lines[at])) words.push(lines[at++].replace(/^\s*>\s?/, ""));
      const quote = make("blockquote");
      quote.append(inline(make("p"), words.join("\n")));
      page.append(quote);
    } else if (line.includes("|") && starts(line, lines[at + 1])) {
      const rows = [];
      while (at < lines.length && lines[at].includes("|")) rows.push(lines[at++]);
      page.append(table(rows));
    } else {
      const words = [line];
      at += 1;
      while (at < lines.length && lines[at].trim() !== "" && !starts(lines[at], lines[at + 1])) words.push(lines[at++]);
      page.append(inline(make("p"), words.join("\n")));
    }
  }
  return page;
}
