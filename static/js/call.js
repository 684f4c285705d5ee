// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Calls of this server's API. What belongs to another imaging server is done there by this one (mozpool/web/forward.py),
// so that the browser only ever talks to the server that its page came from.

const LIMIT = 30000;

/* What shows the server that a call comes from one of its pages (mozpool/web/signon.py). */
const csrf = document.querySelector("meta[name=csrf]")?.content;

/** What went wrong, in words; `field` names the input that is to blame, if one is. */
export class CallError extends Error {
  constructor(message, field = null, status = 0) {
    super(message);
    this.field = field;
    this.status = status;
  }
}

/** Call `path`; resolves to what it answers as JSON ({} when that is nothing) within `limit` ms. Rejects with CallError. */
export async function call(path, { method = "POST", body = undefined, limit = LIMIT } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      cache: "no-store",
      headers: {
        "Mozpool-Forward": "1",
        ...(csrf ? { "Mozpool-Csrf": csrf } : {}),
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(limit),
    });
  } catch (error) {
    throw new CallError(error.name === "TimeoutError" ? "The server took too long." : "The server does not answer.");
  }
  const text = await answer.text();
  let said = {};
  try {
    said = text ? JSON.parse(text) : {};
  } catch {
    if (answer.ok) {
      throw new CallError("The server's answer makes no sense.", null, answer.status);
    }
  }
  if (!answer.ok) {
    const message = said.error?.message ?? `The server answered ${answer.status}.`;
    throw new CallError(message.charAt(0).toUpperCase() + message.slice(1), said.error?.field ?? null, answer.status);
  }
  return said;
}
