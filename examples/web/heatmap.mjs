// The table of weights: a row for each query word, a column for each value word. The words are
// buttons; pressed means that the word's entry in its mask is True.

const element = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);

/** A weight with two decimals; an exact zero as a bare 0. */
export const weightText = (weight) => (weight === 0 ? "0" : weight.toFixed(2));

export class Heatmap {
  #table;
  #toggle;
  #buttons;
  #cells;

  /** `toggle(side, index)` is called when a word of side "query" or "value" is clicked. */
  constructor(table, toggle) {
    this.#table = table;
    this.#toggle = toggle;
  }

  /** New words: builds the table anew. */
  setWords(query, value) {
    const corner = element("td", { className: "corner", innerHTML: "value →<br>query ↓" });
    corner.setAttribute("aria-hidden", "true");
    const columns = value.map((word, j) => this.#header("value", word, j, "col"));
    const rows = query.map((word, i) => this.#header("query", word, i, "row"));
    this.#cells = query.map(() => value.map(() => element("td")));
    const head = element("tr");
    head.append(corner, ...columns);
    const body = rows.map((row, i) => {
      const line = element("tr");
      line.append(row, ...this.#cells[i]);
      return line;
    });
    const [thead, tbody] = [element("thead"), element("tbody")];
    thead.append(head);
    tbody.append(...body);
    this.#table.replaceChildren(thead, tbody);
    this.#buttons = {
      query: rows.map((row) => row.firstChild),
      value: columns.map((column) => column.firstChild),
    };
  }

  #header(side, word, index, scope) {
    const button = element("button", { type: "button", textContent: word });
    // The same word may stand twice in a sentence.
    button.setAttribute("aria-label", `${word}, ${side} word ${index + 1}`);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => this.#toggle(side, index));
    const header = element("th", { scope });
    header.append(button);
    return header;
  }

  /** Weights [Tq, Tv] row by row, the two masks, and whether a word sees later ones. */
  show(weights, { query, value }, causal) {
    this.#cells.forEach((row, i) =>
      row.forEach((cell, j) => {
        const weight = weights[i * row.length + j];
        cell.textContent = weightText(weight);
        cell.style.setProperty("--weight", weight);
        cell.classList.toggle("unseen", !value[j] || (causal && j > i));
      }),
    );
    for (const [side, mask] of Object.entries({ query, value })) {
      this.#buttons[side].forEach((button, i) => button.setAttribute("aria-pressed", String(mask[i])));
    }
  }
}
