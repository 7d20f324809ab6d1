// Builds the page: ../src/page.html, which the program serves, from the files of this directory.
//
//     node build.mjs            builds it, and updates the content security policy in ../src/page.rs
//     node build.mjs --check    fails if they are not up to date, or the page is too large
//
// The tools are those of ../../client.

import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const require = createRequire(here("../../client/package.json"));
const { build, transform } = require("esbuild");
const { minify } = require("terser");

/** The most bytes of the page, compressed. */
const COMPRESSED_BYTES_MAX = 30_000;

const bundled = await build({
  entryPoints: [here("main.js")],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  write: false,
});
// `</script` in a string would end the script.
const { code } = await minify(bundled.outputFiles[0].text, { module: true, ecma: 2022, compress: { passes: 2 }, format: { inline_script: true } });
const style = await transform(await readFile(here("style.css"), "utf8"), { loader: "css", minify: true, target: "chrome123" });
const template = await readFile(here("page.html"), "utf8");
const page = template.replace("<style></style>", () => `<style>${style.code.trim()}</style>`).replace('<script type="module"></script>', () => `<script type="module">${code}</script>`);

const compressed = gzipSync(page, { level: 9 }).length;
if (compressed > COMPRESSED_BYTES_MAX) {
  console.error(`the page has ${compressed} bytes compressed; at most ${COMPRESSED_BYTES_MAX} are allowed`);
  process.exit(1);
}
// The content security policy names the hashes of the style and the script.
const hash = (content) => createHash("sha256").update(content).digest("base64");
const source = await readFile(here("../src/page.rs"), "utf8");
const policy = source.replace(/style-src 'sha256-[^']*'/, `style-src 'sha256-${hash(style.code.trim())}'`).replace(/script-src 'sha256-[^']*'/, `script-src 'sha256-${hash(code)}'`);
const built = { "../src/page.html": page, "../src/page.rs": policy };
for (const [path, content] of Object.entries(built)) {
  if ((await readFile(here(path), "utf8").catch(() => "")) === content) continue;
  if (process.argv.includes("--check")) {
    console.error("broadcast/src is not what broadcast/page builds to: run `node broadcast/page/build.mjs`");
    process.exit(1);
  }
  await writeFile(here(path), content);
}
console.log(`page.html: ${page.length.toLocaleString("en")} characters, ${compressed.toLocaleString("en")} bytes compressed`);
