// A value as a cell of a CSV file. What a spreadsheet takes for a formula gets a quote, as in common/escape.py, unless it is a number.
const csvCell = (value) => {
  const text = String(value ?? ""), isNumber = text.trim() !== "" && !isNaN(text.replaceAll(",", ""));
  const safe = /^ *[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) && !isNumber ? `'${text}` : text;
  return /[",;\t\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
