import { CallError, connect, Data, type CallErrorCode, type Connection, type Info, type Options, type State } from "humphrey-ws";

const options: Options = { protocols: ["own"], reconnect: (code) => (code === 4001 ? false : undefined), events: "/events" };
const connection: Connection = connect("/live", options);
connect(new URL("wss://example.com/"));
connect(async () => `/live?token=${await Promise.resolve("x")}`);
// @ts-expect-error An address is needed.
connect();

const end: () => void = connection.on("message", (data: Data, { name, room, id }: Info) => console.log(data.text(), name, room, id));
end();
for await (const data of connection.on("message")) console.log(data.json<{ a: number }>().a, data.isText);
for await (const data of connection.messages()) console.log(data.text());
for await (const state of connection.states()) console.log(state.name);
connection.states((state: State) => {
  if (state.name === "waiting") console.log(state.until, state.attempts);
  if (state.name === "open") console.log(state.transport === "events", state.protocol);
  // @ts-expect-error Only the state `waiting` has `until`.
  if (state.name === "open") console.log(state.until);
});

connection.send("text");
connection.send(new Uint8Array());
connection.send(new DataView(new ArrayBuffer(1)));
// @ts-expect-error Plain messages are text or bytes.
connection.send({ a: 1 });
// @ts-expect-error Its bytes have to be asked for first.
connection.send(new Blob(["a"]));
connection.notify("draw", { x: 1 });
connection.notify("bytes", new ArrayBuffer(1));
try {
  const data: Data = await connection.call("add", [1, 2], { signal: AbortSignal.timeout(5), timeout: 10, onItem: (part) => part.text() });
  console.log(data.json(), data.length);
} catch (error) {
  if (error instanceof CallError) {
    const code: CallErrorCode = error.code;
    console.log(code, error.sent);
    // @ts-expect-error There is no such code.
    console.log(error.code === "nothing");
  }
}
connection.handle("ask", async (data, { name, signal }) => ({ name, text: data.text(), aborted: signal.aborted }));
await connection.join("room", { onPresence: (members) => console.log(members.map(({ user, connections, state }) => [user, connections, state])) });
const [first] = await connection.room("room").presence();
const count: number | undefined = first?.connections;
// @ts-expect-error
first.connections = 1;
const last: string = await connection.join("room", { since: "abc-1", onGap: ({ room, since }) => console.log(room, since) });
await connection.leave("room");
connection.reconnect();
connection.close(4000, "done");
console.log(last);
