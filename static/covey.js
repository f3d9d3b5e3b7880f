// What every page does beyond HTML: secrets out of the address, copying, asking before harm, calm polling.

// A one-time secret comes in the address's fragment, which browsers never send. It goes into the form, and out of sight.
const form = document.querySelector("form[data-fragment]");
if (form && location.hash.length > 1) {
  const input = form.elements.namedItem(form.dataset.fragment);
  input.value = decodeURIComponent(location.hash.slice(1));
  form.querySelector("[data-fragment-field]").hidden = true;
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.namedItem("name").focus();
}

// Copying. navigator.clipboard is there under HTTPS and on localhost alone; the rest selects, and copies where it may.
async function copy(element) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  }
  getSelection().selectAllChildren(element);
  return document.execCommand("copy");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const copied = await copy(document.getElementById(button.dataset.copy)).catch(() => false);
  button.textContent = copied ? "Copied" : "Press Ctrl-C";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

// Asking before harm: a form with data-confirm is sent only after the dialog's yes.
const dialog = document.getElementById("confirm");
let asking = null;

document.addEventListener("submit", (event) => {
  const sent = event.target;
  if (sent.dataset.confirm && sent !== asking) {
    event.preventDefault();
    event.stopImmediatePropagation();
    asking = sent;
    dialog.querySelector("h2").textContent = sent.dataset.confirm;
    dialog.querySelector("p").textContent = sent.dataset.confirmText;
    dialog.querySelector("[value=yes]").textContent = sent.dataset.confirmYes;
    dialog.returnValue = "no";
    dialog.showModal();
    dialog.querySelector("[value=no]").focus();
    return;
  }
  asking = null;
  const button = event.submitter;
  if (button?.getAttribute("aria-busy") === "true") {
    event.preventDefault();
    event.stopImmediatePropagation();
  } else if (button && sent.method === "post") {
    button.setAttribute("aria-busy", "true");
  }
}, true);

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close("no");
  if (event.target.value) dialog.close(event.target.value);
});
dialog.addEventListener("close", () => {
  const sent = asking;
  if (dialog.returnValue === "yes") sent.requestSubmit(sent.querySelector("[type=submit]"));
  asking = null;
});

function rest() {
  for (const button of document.querySelectorAll("[aria-busy=true]")) button.removeAttribute("aria-busy");
}
window.addEventListener("pageshow", rest);
document.addEventListener("htmx:afterRequest", rest);

// A live part asks again and again, but not while nobody looks, nor while somebody marks text in it, nor while somebody
// is asked about a form in it: new contents would take away the very form that waits for the answer.
document.addEventListener("htmx:beforeRequest", (event) => {
  const live = event.target.closest("[data-live]");
  const marked = getSelection();
  const busy = document.hidden || dialog.open || (!marked.isCollapsed && live?.contains(marked.anchorNode));
  if (live && busy) event.preventDefault();
});
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.closest("[data-live]") && dialog.open) event.detail.shouldSwap = false;
});

function lost(isLost) {
  const words = document.getElementById("lost");
  if (words) words.hidden = !isLost;
}
for (const name of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.addEventListener(name, (event) => {
    // A form that could not be sent in place is sent the plain way: the browser shows whatever is the matter.
    if (event.target.matches("form")) event.target.submit();
    else lost(true);
  });
}
document.addEventListener("htmx:afterSwap", () => { lost(false); });

// A look at the password that is being typed.
for (const input of document.querySelectorAll("input[type=password]")) {
  const box = document.createElement("div");
  box.className = "with-peek";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Show";
  button.setAttribute("aria-label", "Show the password");
  button.addEventListener("click", () => {
    const shown = input.type === "password";
    input.type = shown ? "text" : "password";
    button.textContent = shown ? "Hide" : "Show";
    button.setAttribute("aria-label", shown ? "Hide the password" : "Show the password");
  });
  input.replaceWith(box);
  box.append(input, button);
}
