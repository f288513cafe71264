// Numbers and times for people. An unknown value is a dash.

const DASH = "\u2013";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** 12,345 */
export function count(value) {
  return known(value) ? whole.format(value) : DASH;
}

/** 0.350 */
export function size(value) {
  return known(value) ? value.toFixed(3) : DASH;
}

/** Three significant digits. */
export function short(value) {
  if (!known(value)) return DASH;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(2);
  return Number(value.toPrecision(3)).toString();
}

/** A temperature; uniform draws have none. */
export function temperature(value) {
  return known(value) ? short(value) : "none (uniform)";
}

/** 12.3 % */
export function percent(value, digits = 1) {
  return known(value) ? `${(100 * value).toFixed(digits)} %` : DASH;
}

/** 4.2 s, 3 min 20 s, 5 h 12 min, 2 d 3 h */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min${minutes < 10 ? ` ${Math.round(seconds % 60)} s` : ""}`;
  const hours = Math.floor(minutes / 60);
  return hours < 24 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** 14:05:09, with the day when it is not today's. */
export function clock(seconds) {
  if (!known(seconds)) return DASH;
  const at = new Date(seconds * 1000);
  const time = at.toLocaleTimeString("en-GB");
  const day = at.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return at.toDateString() === new Date().toDateString() ? time : `${day} ${time}`;
}
