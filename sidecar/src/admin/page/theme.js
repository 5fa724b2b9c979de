// The colours that were chosen, set before anything is painted. Absent: what the system asks for.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("merit.theme");
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
