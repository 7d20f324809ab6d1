// Settings that stay in this browser, and those in the address, which a link shares.

const KEY = "humphrey-broadcast";
const DEFAULTS = { theme: "auto", wrap: true, wide: false, keys: true };

function stored() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    // Storage may be blocked.
    return { ...DEFAULTS };
  }
}

export const settings = stored();

export function set(name, value) {
  settings[name] = value;
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // They last as long as the page.
  }
  show();
}

/** Applies the settings to the document. */
export function show() {
  const root = document.documentElement.dataset;
  root.theme = settings.theme;
  root.wrap = settings.wrap ? "on" : "off";
  root.width = settings.wide ? "full" : "page";
}

/** The filters in the address: `?filter=…&not=…&find=…`. */
export function filtersInAddress() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(["filter", "not", "find"].map((name) => [name, query.get(name) ?? ""]));
}

/** Puts the filters into the address, so that the view can be shared. */
export function showInAddress(filters) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(filters)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  const search = query.size ? `?${query}` : "";
  history.replaceState(history.state, "", location.pathname + search + location.hash);
}
