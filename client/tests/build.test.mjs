// What is built: its size, that it is what is committed, and its types.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

test('the module is under 6.5 KB, minified and compressed', async () => {
  const code = await readFile(here('../../src/client.js'));
  const { length } = gzipSync(code, { level: 9 });
  console.log(`${code.length} bytes minified, ${length} compressed`);
  assert.ok(length < 6_500, String(length));
});

test('the module that is committed is what the sources build to', () => {
  execFileSync(process.execPath, [here('../build.mjs'), '--check']);
});

test('the module exports what its types say, and nothing else', async () => {
  const module = await import('../../src/client.js');
  assert.deepEqual(Object.keys(module).sort(), ['CallError', 'Data', 'connect']);
});

test('the types are those of the guide: programs that are right compile, and others do not', () => {
  // Errors that are expected are marked in the program; one that does not come is an error, too.
  execFileSync(process.execPath, [here('../node_modules/typescript/bin/tsc'), '-p', here('types')], { stdio: 'pipe' });
});

test('the React hook of the guide passes type checks', async () => {
  const page = await readFile(here('../../docs/react.md'), 'utf8');
  const program = page.match(/```tsx\n([^]*?)```/)[1];
  // Beside the other programs, where the types of React are found.
  const file = here('types/react-guide.tsx');
  try {
    await writeFile(file, program);
    execFileSync(process.execPath, [here('../node_modules/typescript/bin/tsc'), '-p', here('types/react.tsconfig.json')], { stdio: 'pipe' });
  } finally {
    await rm(file, { force: true });
  }
});

test('the package has what it needs and depends on nothing', async () => {
  const { dependencies, peerDependencies, files } = JSON.parse(await readFile(here('../package.json'), 'utf8'));
  assert.deepEqual([dependencies, peerDependencies], [undefined, undefined]);
  assert.deepEqual(files, ['dist']);
  const cargo = await readFile(here('../../Cargo.toml'), 'utf8');
  const { version } = JSON.parse(await readFile(here('../package.json'), 'utf8'));
  assert.equal(cargo.match(/^version = "(.+)"$/m)[1], version);
});
