// The build: its size, its types, and that the committed module matches it.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

test('module is under 6.6 KB minified and gzipped', async () => {
  const code = await readFile(here('../../src/client.js'));
  const { length } = gzipSync(code, { level: 9 });
  console.log(`${code.length} bytes minified, ${length} compressed`);
  assert.ok(length < 6_600, String(length));
});

test('committed module matches the build of the sources', () => {
  execFileSync(process.execPath, [here('../build.mjs'), '--check']);
});

test('module exports exactly what its types declare', async () => {
  const module = await import('../../src/client.js');
  assert.deepEqual(Object.keys(module).sort(), ['CallError', 'Data', 'connect']);
});

test('types accept valid programs and reject invalid ones', () => {
  // The program marks expected errors with @ts-expect-error, which fails if there is no error.
  execFileSync(process.execPath, [here('../node_modules/typescript/bin/tsc'), '-p', here('types')], { stdio: 'pipe' });
});

test('the React hook of the guide passes type checks', async () => {
  const page = await readFile(here('../../docs/react.md'), 'utf8');
  const program = page.match(/```tsx\n([^]*?)```/)[1];
  // Written beside the other programs, where tsc finds the types of React.
  const file = here('types/react-guide.tsx');
  try {
    await writeFile(file, program);
    execFileSync(process.execPath, [here('../node_modules/typescript/bin/tsc'), '-p', here('types/react.tsconfig.json')], { stdio: 'pipe' });
  } finally {
    await rm(file, { force: true });
  }
});

test('package contains its files and has no dependencies', async () => {
  const { dependencies, peerDependencies, files } = JSON.parse(await readFile(here('../package.json'), 'utf8'));
  assert.deepEqual([dependencies, peerDependencies], [undefined, undefined]);
  assert.deepEqual(files, ['dist']);
  const cargo = await readFile(here('../../Cargo.toml'), 'utf8');
  const { version } = JSON.parse(await readFile(here('../package.json'), 'utf8'));
  assert.equal(cargo.match(/^version = "(.+)"$/m)[1], version);
});
