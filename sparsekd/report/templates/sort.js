// Headings of plain tables become buttons that sort by their column; without this script the tables stay as they are.
for (const table of document.querySelectorAll("table:not(.main)")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  const number = text => parseFloat(text.replace("\u2212", "-").replace(/^[^\d-]+/, "").replace(/,/g, ""));
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      const rows = [...body.rows].map(row => [row, row.cells[column].textContent.trim()]);
      const numbers = column > 0 && rows.some(([, text]) => !isNaN(number(text)));
      const missing = text => numbers ? isNaN(number(text)) : text === "";
      rows.sort(([, a], [, b]) => {
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const order = numbers ? number(a) - number(b) : a.localeCompare(b, "en", {numeric: true});
        return up ? order : -order;
      });
      body.append(...rows.map(([row]) => row));
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  });
}
