// The dialog that asks for the server's key.

let pending = null; // several requests may be refused at once: they share one dialog

/** Return the key that is typed in, null if the dialog is cancelled. */
export function askForKey(isRefused) {
  pending ??= openDialog(isRefused).finally(() => { pending = null; });
  return pending;
}

function openDialog(isRefused) {
  const dialog = document.getElementById("key");
  const input = document.getElementById("key-value");
  document.getElementById("key-reason").textContent =
    isRefused ? "The server refused this key." : "This server needs a key.";
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  input.focus();
  return new Promise(resolve => {
    dialog.addEventListener("close", () => {
      const key = input.value.trim();
      input.value = "";
      resolve(dialog.returnValue === "use" ? key : null);
    }, { once: true });
  });
}
