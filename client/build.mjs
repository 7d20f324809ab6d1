// Builds the client: `dist/` for npm, and `../src/client.js`, the same module, which the library serves.
//
//     node build.mjs            builds
//     node build.mjs --check    fails if `../src/client.js` is not up to date

import { execFileSync } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import { build } from 'esbuild';
import { minify } from 'terser';

const here = path => fileURLToPath(new URL(path, import.meta.url));
const { version, license } = JSON.parse(await readFile(here('package.json'), 'utf8'));

const result = await build({
  entryPoints: [here('src/index.ts')],
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  charset: 'utf8',
  legalComments: 'none',
  write: false,
  // Internal property names. None is part of the public API or of the browser's.
  mangleProps: /^(isFrame|isSent|isJoined|isConfirmed|isLive|isAwaited|historyId|settle|buffered|ofText|ofBytes|handlers|noteReceived|forget|received|payload|kind|lastIds|gap|lost|make|take|joined|check|transmit|form|fail|connect|renegotiate|start|stop|emit|record|options|last|remove|end|open|items|info|arrived|named|changed|write|iterate|listen|enqueue|resolve|reject|members)$/,
});
// Unlike esbuild, terser reuses names in nested scopes, and repetition compresses better: 5 % smaller.
const { code: minified } = await minify(result.outputFiles[0].text, {
  module: true,
  ecma: 2022,
  compress: { passes: 3 },
  format: { preamble: `// humphrey-ws ${version}, ${license}, from client/src` },
});
const code = `${minified}\n`;

if (process.argv.includes('--check')) {
  const committed = await readFile(here('../src/client.js'), 'utf8').catch(() => '');
  if (committed !== code) {
    console.error('src/client.js is not what client/src builds to: run `npm run build` in client/');
    process.exit(1);
  }
  execFileSync(process.execPath, [here('node_modules/typescript/bin/tsc'), '--noEmit', '--emitDeclarationOnly', 'false', '-p', here('.')], { stdio: 'inherit' });
  console.log('src/client.js is what client/src builds to');
} else {
  await rm(here('dist'), { recursive: true, force: true });
  await mkdir(here('dist'));
  await writeFile(here('dist/index.js'), code);
  await writeFile(here('../src/client.js'), code);
  execFileSync(process.execPath, [here('node_modules/typescript/bin/tsc'), '-p', here('.')], { stdio: 'inherit' });
}
