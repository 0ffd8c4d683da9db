// A field above the cards of the gallery: only those that contain what is written there are shown.
document.addEventListener("DOMContentLoaded", () => {
  const grids = [...document.querySelectorAll(".gallery-cards")];
  if (!grids.length || !location.pathname.endsWith("/gallery/index.html")) return;
  const field = document.createElement("input");
  Object.assign(field, { type: "search", className: "gallery-filter", placeholder: "Find a page: clusters, diffusion, NUTS ..." });
  field.setAttribute("aria-label", "Find a page");
  grids[0].closest("section").before(field);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const grid of grids) {
      let shown = 0;
      for (const column of grid.querySelectorAll(".sd-col")) {
        const text = column.textContent.toLowerCase();
        column.hidden = !words.every((word) => text.includes(word));
        shown += !column.hidden;
      }
      grid.closest("section").classList.toggle("gallery-empty", !shown);
    }
  });
});
