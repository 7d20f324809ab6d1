export { connect } from "./connection.js";
export { CallError } from "./error.js";
export { Data } from "./data.js";
export type { CallErrorCode } from "./error.js";
export type { CallOptions, Handler } from "./calls.js";
export type { Connection, Info, Listener } from "./connection.js";
export type { JoinOptions, Member } from "./rooms.js";
export type { Address, Options, State } from "./options.js";
export type { Payload } from "./data.js";
