"use strict";
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falls = head.getAttribute("aria-sort") !== "descending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const key = (row) => row.cells[column].textContent;
    const isText = column === 0;
    const number = (row) => { const value = parseFloat(key(row)); return Number.isNaN(value) ? -Infinity : value; };
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => isText ? key(b).localeCompare(key(a)) : number(b) - number(a));
    if (!falls) rows.reverse();
    table.tBodies[0].append(...rows);
  }));
}
for (const box of document.querySelectorAll("input.search")) {
  const table = box.parentElement.nextElementSibling.querySelector("table");
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
