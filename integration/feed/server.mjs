// A WebSocket feed of ratings that loses its connections, on Node and `ws`.
//
//   node server.mjs '{"ratings":10000,"agents":50,"rate":2000,"drop_every_ms":2000}'
//
// Prints the port as its first line. Ratings are the same for the same arguments, and spelled in many
// ways: what arrives elsewhere must have the same bytes. One client at a time is served; a connection
// is dropped between complete frames, without a close frame. What was sent is not sent again, unless
// the client asks for what came `?after=<id>`; with `"resume":true`, who names no id gets all.
//
//   GET /sent    one JSON object a line, in order: {"id","agent","score","text"}
//   GET /stats   {"connects","drops","pongs","refused","sent"}

import { createServer as plain } from 'node:http';
import { createServer as secure } from 'node:https';
import { readFileSync } from 'node:fs';
import { WebSocketServer } from 'ws';

const options = {
  ratings: 10000,
  agents: 50,
  rate: 2000,
  drop_every_ms: 0,
  resume: false,
  key: null, // what the field x-feed-key must hold
  tls: null, // {"cert","key"}: PEM files
  ...JSON.parse(process.argv[2] ?? '{}'),
};
const TICK_MS = 10;
const BUFFERED_MAX = 1 << 20;

// Scores wander evenly over [1, 5], with digits to spare.
const score = (n) => 1 + 4 * ((n * 0.6180339887498949) % 1);

function spell(n) {
  const id = `feed-${n}`;
  const agent = `agent-${(n * 7) % options.agents}`;
  const value = score(n);
  const user = `user-${n % 97}`;
  const spellings = [
    () => JSON.stringify({ id, agent_id: agent, user_id: user, score: value }),
    () => JSON.stringify({ userId: user, agentId: agent, score: value, id, unknown: { deep: [1, null] } }, null, 2),
    () => ` {"score":${value}0,"agent_id":"${agent}" , "user_id":"\\u00fc${user}","id":"${id}"}\n`,
    () => `{"id":"${id}","user_id":"ü${user}","agent_id":"${agent}","score":${value.toFixed(17)}e0}\r\n`,
  ];
  const text = spellings[n % spellings.length]();
  // The value that a reader of the text gets.
  return { id, agent, score: JSON.parse(text).score, text };
}

const ratings = Array.from({ length: options.ratings }, (_, n) => spell(n));
const places = new Map(ratings.map((rating, place) => [rating.id, place]));
const stats = { connects: 0, drops: 0, pongs: 0, refused: 0, sent: 0 };
let next = 0;
let client = null;

function answer(request, response) {
  response.setHeader('content-type', 'application/x-ndjson');
  if (request.url === '/sent') {
    response.end(ratings.map((rating) => JSON.stringify(rating) + '\n').join(''));
  } else {
    stats.sent = next;
    response.end(JSON.stringify(stats));
  }
}

const pem = options.tls && {
  cert: readFileSync(options.tls.cert),
  key: readFileSync(options.tls.key),
};
const server = pem ? secure(pem, answer) : plain(answer);
const sockets = new WebSocketServer({ noServer: true });

server.on('upgrade', (request, socket, head) => {
  if (options.key !== null && request.headers['x-feed-key'] !== options.key) {
    stats.refused += 1;
    socket.end('HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
    return;
  }
  sockets.handleUpgrade(request, socket, head, (connected) => {
    const after = new URL(request.url, 'http://feed').searchParams.get('after');
    if (after !== null) {
      next = (places.get(after) ?? -1) + 1;
    } else if (options.resume) {
      next = 0;
    }
    stats.connects += 1;
    client?.terminate();
    client = connected;
    connected.on('pong', () => (stats.pongs += 1));
    connected.on('error', () => {});
    connected.on('close', () => (client = client === connected ? null : client));
    connected.ping();
  });
});

// Paced by the clock while somebody listens, so that a late tick does not slow the feed down.
let due = 0;
let before = Date.now();
setInterval(() => {
  const now = Date.now();
  due = client === null ? 0 : Math.min(due + ((now - before) * options.rate) / 1000, options.rate);
  before = now;
  while (due >= 1 && next < ratings.length && client?.readyState === 1) {
    if (client.bufferedAmount > BUFFERED_MAX) break;
    client.send(ratings[next].text, { binary: next % 10 === 9 });
    next += 1;
    due -= 1;
  }
}, TICK_MS);

if (options.drop_every_ms > 0) {
  setInterval(() => {
    if (client === null || next === ratings.length) return;
    // What was sent goes out whole, then the stream ends.
    client._socket.end();
    client = null;
    stats.drops += 1;
  }, options.drop_every_ms);
}

server.listen(0, '127.0.0.1', () => console.log(server.address().port));
