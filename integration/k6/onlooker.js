// An agent that watches its own limit change: from the 202 of its rating until a request of it shows the new limit.
import http from 'k6/http';
import { check } from 'k6';
import { Trend } from 'k6/metrics';
import { agentToken } from './token.js';

const visible = new Trend('rating_to_limit_ms', true);
const posted = { headers: { authorization: `Bearer ${__ENV.MERIT_COLLECTOR}`, 'content-type': 'application/json' } };
const agent = 'onlooker';

let token;
let up = true;

export function onlooker() {
  token = token || agentToken(agent);
  // A refusal shows the limit as well as an answer does.
  const peek = () =>
    http.get(`${__ENV.MERIT_GATEWAY}/`, { headers: { authorization: `Bearer ${token}` } }).headers['Ratelimit-Policy'];
  const before = peek();
  const body = JSON.stringify({ agent_id: agent, user_id: 'one', score: up ? 5 : 1 });
  up = !up;
  const answer = http.post(`${__ENV.MERIT_INGEST}/v1/rating`, body, posted);
  const since = Date.now();
  if (!check(answer, { accepted: (r) => r.status === 202 })) return;
  while (Date.now() - since < 5000) {
    if (peek() !== before) {
      visible.add(Date.now() - since);
      return;
    }
  }
  check(null, { 'limit visible within 5 s': () => false });
}
