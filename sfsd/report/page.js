"use strict";
// Hides the rows of the log that the filter does not select. Texts of rows are only compared.
(() => {
  const form = document.getElementById("filter");
  const search = document.getElementById("search");
  const kind = document.getElementById("kind");
  const user = document.getElementById("user");
  const count = document.getElementById("count");
  const rows = Array.from(document.querySelectorAll("#log tbody tr"), (row) => ({
    row,
    text: row.textContent.toLowerCase(),
    kind: row.dataset.kind,
    user: row.querySelector(".u").textContent,
  }));
  for (const name of [...new Set(rows.map((one) => one.user))].sort()) {
    user.add(new Option(name, name));
  }
  const number = (value) => value.toLocaleString("en");

  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const one of rows) {
      const wanted =
        (!kind.value || one.kind === kind.value) &&
        (!user.value || one.user === user.value) &&
        words.every((word) => one.text.includes(word));
      one.row.hidden = !wanted;
      shown += wanted;
    }
    count.textContent = `${number(shown)} of ${number(rows.length)} entries shown here`;
  }

  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply(); // a browser may have kept the values of the fields
})();
